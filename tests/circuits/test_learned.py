"""Masks and constants that are learned."""

import functools

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax import circuits
from mijax._errors import ConfigError, OutputError, SiteError
from mijax.circuits.forward._connected import Gate
from mijax.circuits.methods import _edge_pruning, _fit, _hard_concrete, _ugs
from mijax.circuits.methods._masks import gate_of, n_gates
from mijax.core import _journal

ALIVE = {"input", "a0.h1", "a1.h2", "logits"}
DRAWS = 200_000


@functools.cache
def toy():
    """Two layers of four heads, of which all but two write nothing."""
    model = mijax.testing.tiny_attention_only(jax.random.key(0))
    w_o = np.array(model.blocks.attention.w_o)
    alive = np.zeros(w_o.shape[:2])
    alive[0, 1] = alive[1, 2] = 3
    w_o *= alive[..., None, None]
    return eqx.tree_at(lambda m: m.blocks.attention.w_o, model, jnp.asarray(w_o))


@functools.cache
def prompts():
    rng = np.random.default_rng(0)
    return rng.integers(0, 64, (2, 16, 5))


def task(model=None, ablation=None):
    model = toy() if model is None else model
    clean, corrupt = prompts()
    logits = jax.vmap(lambda tokens: model(tokens)[0])(jnp.asarray(clean))
    metric = mijax.negative(mijax.kl(logits))
    return circuits.Task(clean, corrupt, metric=metric, ablation=ablation)


def circuit(graph, level):
    """Tells which edges or nodes can matter."""
    if level == "node":
        return np.array([sender in ALIVE for sender in graph.senders])
    sends = [sender in ALIVE for sender in graph.senders]
    reads = [receiver.split("<")[0] in ALIVE for receiver in graph.receivers]
    return graph.edges & np.outer(sends, reads)


def auroc(scores):
    """Chance that something in the circuit scores above something outside it."""
    values, true = np.asarray(scores.values), circuit(scores.graph, scores.level)
    inside, outside = values[true & scores.real], values[~true & scores.real]
    above = inside[:, None] > outside
    return (above + 0.5 * (inside[:, None] == outside)).mean()


@pytest.mark.parametrize("log_alpha", [-3.0, 0.0, 2.0])
def test_hard_concrete_gates(log_alpha):
    params = jnp.full(DRAWS, log_alpha)
    drawn = _hard_concrete.sample(params, jax.random.key(0))
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    # P(z = 0) and P(z = 1) are those of s below 1/12 and above 11/12.
    closed = sigmoid(2 / 3 * np.log(1 / 11) - log_alpha)
    opened = sigmoid(2 / 3 * np.log(1 / 11) + log_alpha)
    assert (drawn == 0).mean() == pytest.approx(closed, abs=4e-3)
    assert (drawn == 1).mean() == pytest.approx(opened, abs=4e-3)
    l0 = _hard_concrete.expected_l0(params[0])
    assert float(l0) == pytest.approx(1 - closed, abs=1e-6)
    u = (np.arange(DRAWS) + 0.5) / DRAWS
    s = sigmoid((np.log(u / (1 - u)) + log_alpha) * 3 / 2)
    mean = np.clip(1.2 * s - 0.1, 0, 1).mean()
    assert drawn.mean() == pytest.approx(mean, abs=4e-3)
    value = np.clip(1.2 * sigmoid(log_alpha) - 0.1, 0, 1)
    assert float(_hard_concrete.value(params[0])) == pytest.approx(value, abs=1e-6)


def test_hard_concrete_gates_start_where_they_are_told_to():
    found = _hard_concrete.value(jnp.float32(_hard_concrete.log_alpha_of(0.9)))
    assert float(found) == pytest.approx(0.9, abs=1e-6)


@pytest.mark.parametrize("phi", [-2.0, 0.0, 1.0])
def test_uniform_gradient_sampling_is_the_coin_s_gradient(phi):
    params, key = jnp.full(DRAWS, phi), jax.random.key(0)
    drawn = _ugs.draw(params, key)
    theta = float(jax.nn.sigmoid(phi))
    width = theta * (1 - theta)
    assert drawn.mean() == pytest.approx(theta, abs=4e-3)
    assert (drawn == 0).mean() == pytest.approx(1 - theta - width / 2, abs=4e-3)
    assert (drawn == 1).mean() == pytest.approx(theta - width / 2, abs=4e-3)
    within = np.sort(drawn[(drawn > 0) & (drawn < 1)])
    chex.assert_trees_all_close(within, np.linspace(0, 1, len(within)), atol=0.02)
    # The loss is exp(alpha): the coin's gradient is theta (1 - theta) (e - 1).
    found = jax.grad(lambda p: jnp.exp(_ugs.draw(p, key)).mean())(params).sum()
    assert float(found) == pytest.approx(width * (np.e - 1), rel=0.02)


def test_multipliers_ascend_and_gates_descend():
    multipliers, gaps = jnp.array([2.0, 3.0]), jnp.array([-0.5, 0.25])
    by = jax.grad(_edge_pruning.constraint, argnums=(0, 1))(multipliers, gaps)
    chex.assert_trees_all_close(by, (-gaps, multipliers))


METHODS = {
    "probing, nodes": circuits.SubnetworkProbing(
        0.1, steps=300, learning_rate=0.05, batch=8
    ),
    "probing, edges": circuits.SubnetworkProbing(
        1.0, level="edge", steps=300, learning_rate=0.05, batch=8
    ),
    "sampling, nodes": circuits.UGS(0.01, level="node", steps=300, learning_rate=0.05),
    "sampling, edges": circuits.UGS(0.01, steps=300, learning_rate=0.05),
    "pruning, edges": circuits.EdgePruning(0.85, steps=1000, batch=8),
    "pruning, both": circuits.EdgePruning(0.85, 0.6, steps=1000, batch=8),
}
LEAST = {"pruning, both": 0.98}


@pytest.mark.parametrize("name", METHODS)
def test_the_circuit_is_found(name):
    method = METHODS[name]
    scores = circuits.discover(toy(), task(), method)
    assert scores.level == method.level
    assert scores.values.shape == (scores.real.shape)
    assert (np.asarray(scores.values)[scores.real] > 0).all()
    assert (np.asarray(scores.values)[~scores.real] == 0).all()
    assert auroc(scores) >= LEAST.get(name, 1.0)
    outside = 1 - circuit(scores.graph, scores.level)[scores.real].mean()
    assert circuits.sparsity(scores) == pytest.approx(outside, abs=0.1)


@pytest.mark.parametrize("name", ["probing, edges", "sampling, edges"])
def test_the_mask_is_the_planted_circuit(name):
    planted = mijax.testing.planted("induction")
    metric = mijax.logit_difference(planted.answer, planted.wrong)
    asked = circuits.Task(planted.clean, planted.corrupt, metric=metric)
    scores = circuits.discover(planted.model, asked, METHODS[name])
    kept = np.argwhere(np.asarray(scores.values) > np.log(2))
    senders, receivers = scores.graph.senders, scores.graph.receivers
    assert {(senders[i], receivers[j]) for i, j in kept} == planted.differing


QUICK = {
    "probing": circuits.SubnetworkProbing(0.1, level="edge", steps=6, batch=7),
    "sampling": circuits.UGS(0.01, samples=2, steps=6, batch=7),
    "pruning": circuits.EdgePruning(0.85, 0.6, steps=6, batch=7),
}


@pytest.mark.parametrize("name", QUICK)
def test_seeds_decide_and_only_shapes_are_compiled(name, no_programs, monkeypatch):
    traces = []

    def counted(*args):
        traces.append(args)
        return gated(*args)

    gated = _fit.gated
    monkeypatch.setattr(_fit, "gated", counted)
    method = eqx.tree_at(lambda m: m.seed, QUICK[name], 1)
    first = circuits.discover(toy(), task(), method).values
    assert traces
    seen = len(traces)
    again = circuits.discover(toy(), task(), method).values
    other = eqx.tree_at(lambda m: (m.seed, m.learning_rate), method, (2, 0.5))
    other = circuits.discover(toy(), task(), other).values
    assert len(traces) == seen
    chex.assert_trees_all_equal(first, again)
    assert (np.asarray(first) != np.asarray(other)).any()


class Stop(Exception):
    pass


@pytest.mark.parametrize("name", QUICK)
def test_resumed_is_uninterrupted_bit_for_bit(name, tmp_path, monkeypatch):
    monkeypatch.setattr(_journal, "SECONDS_BETWEEN_SAVES", 0.0)
    method, file = QUICK[name], str(tmp_path / "fit.npz")

    def stop(done, total):
        if done == 4:
            raise Stop

    with pytest.raises(Stop):
        circuits.discover(toy(), task(), method, progress=stop, resume=file)
    seen = []
    note = lambda *done: seen.append(done)  # noqa: E731
    again = circuits.discover(toy(), task(), method, progress=note, resume=file)
    assert seen == [(5, 6), (6, 6)]
    whole = circuits.discover(toy(), task(), method)
    chex.assert_trees_all_equal(again.values, whole.values)
    # Finished: nothing is run again. Another seed does not take its place.
    done = circuits.discover(toy(), task(), method, progress=note, resume=file)
    chex.assert_trees_all_equal(done.values, whole.values)
    assert len(seen) == 2
    other = eqx.tree_at(lambda m: m.seed, method, 5)
    with pytest.raises(OutputError, match="another"):
        circuits.discover(toy(), task(), other, resume=file)


def test_memory_changes_nothing():
    method = QUICK["sampling"]
    little = circuits.discover(toy(), task(), method, memory=1)
    much = circuits.discover(toy(), task(), method)
    chex.assert_trees_all_close(little.values, much.values, atol=1e-5)


@pytest.mark.parametrize("level", ["edge", "node"])
def test_gradients_of_the_mask_are_finite_differences(level):
    model = mijax.testing.tiny_gpt2(jax.random.key(0))
    graph, asked = circuits.Graph.of(model), task(model)

    @jax.jit
    def loss(gates):
        gate = gate_of(graph, level, gates)
        return _fit.gated(model, graph, asked, jnp.int32(3), gate, asked.ablation)

    rng, size = np.random.default_rng(0), n_gates(graph, level)
    gates, way = rng.uniform(size=size), rng.normal(size=size) / np.sqrt(size)
    slope = jax.grad(loss)(jnp.asarray(gates, jnp.float32)) @ way
    ahead, behind = (loss(jnp.asarray(gates + step * way)) for step in (0.02, -0.02))
    assert abs(slope) > 0.05
    assert float(ahead - behind) / 0.04 == pytest.approx(float(slope), rel=2e-3)


def test_models_of_half_precision():
    half = jax.tree.map(
        lambda a: a.astype(jnp.bfloat16) if eqx.is_inexact_array(a) else a, toy()
    )
    scores = circuits.discover(half, task(), QUICK["probing"])
    assert scores.values.dtype == jnp.float32
    assert np.isfinite(scores.values).all()


def losses(model, ablation):
    """Minus the metric with each sender ablated, averaged over prompts."""
    graph, asked = circuits.Graph.of(model), task(model, ablation)

    def loss(sender, prompt):
        gate = Gate(nodes=1 - jax.nn.one_hot(sender, len(graph.senders))[:, None])
        return -_fit.gated(model, graph, asked, prompt, gate, ablation)

    over = jax.vmap(jax.vmap(loss, (None, 0)), (0, None))
    return jax.jit(over)(jnp.arange(len(graph.senders)), jnp.arange(16)).mean(1)


def test_optimal_ablation_costs_less_than_the_mean():
    model = mijax.testing.tiny_gpt2(jax.random.key(0))
    mean = circuits.mean_ablation(model, prompts()[0])
    method = circuits.OptimalAblation(steps=100, learning_rate=0.02, batch=16)
    best = circuits.optimal_ablation(model, task(model), method)
    before, after = losses(model, mean), losses(model, best)
    assert (after <= before).all()
    assert after.mean() < 0.7 * before.mean()


def test_optimal_ablation_of_some_senders_and_positions(tmp_path, monkeypatch):
    model, clean = toy(), prompts()[0]
    start = circuits.mean_ablation(model, clean, per="position")
    method = circuits.OptimalAblation(("a0.h1", "a1.h2"), steps=4)
    learn = functools.partial(circuits.optimal_ablation, model, task(), method)
    found = learn(start=start)
    moved = np.abs(found.values - start.values).max((1, 2)) > 0
    assert [circuits.Graph.of(model).senders[i] for i in np.flatnonzero(moved)] == [
        "a0.h1",
        "a1.h2",
    ]
    groups = np.arange(16) % 2
    start = circuits.mean_ablation(model, clean, per="template", group=groups)
    found = learn(start=start)
    assert found.values.shape == start.values.shape
    chex.assert_trees_all_equal(found.group, start.group)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ConfigError, match="'neuron'"):
        circuits.SubnetworkProbing(level="neuron")
    with pytest.raises(ConfigError, match="0 steps"):
        circuits.UGS(steps=0)
    with pytest.raises(ConfigError, match="97"):
        circuits.EdgePruning(97.0)
    with pytest.raises(ConfigError, match="single prompts"):
        circuits.discover(toy(), task(), QUICK["probing"], keep_prompts=True)
    method = circuits.OptimalAblation(("a7.h7",))
    with pytest.raises(SiteError, match=r"a7\.h7"):
        circuits.optimal_ablation(toy(), task(), method)
    scores = circuits.discover(toy(), task(), circuits.EAPIG(steps=2, grid="right"))
    with pytest.raises(ConfigError, match="does not learn a mask"):
        circuits.sparsity(scores)
