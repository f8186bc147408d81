"""ACDC, head importance and random scores."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mijax
from mijax import circuits
from mijax._errors import ConfigError, OutputError
from mijax.circuits.forward._connected import Gate, connected, enter, score
from mijax.circuits.forward._graph import node
from mijax.circuits.methods import _suffix

TINY = ("tiny_gpt2", "tiny_llama", "tiny_parallel", "tiny_attention_only")
COUNTER = circuits.Counterfactual()


@functools.cache
def model(name):
    return getattr(mijax.testing, name)(jax.random.key(1))


def task(metric=None, ablation=None):
    rng = np.random.default_rng(0)
    clean, corrupt = rng.integers(0, 64, (2, 3, 5))
    metric = mijax.logit_difference(3, 4) if metric is None else metric
    return circuits.Task(clean, corrupt, metric=metric, ablation=ablation)


def sweep(name, thresholds, of=None, **options):
    method = circuits.ACDC(**options)
    of = task() if of is None else of
    return circuits.acdc_thresholds(model(name), of, thresholds, method=method)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_parallel"])
def test_it_is_what_the_paper_says(name, whole):
    """Against the algorithm spelt out, every removal a forward from the input."""
    kept = spelt_out(model(name), task(), 0.05, whole=whole)
    found = sweep(name, [0.05], whole=whole, batch=16)
    np.testing.assert_array_equal(found.edges[0], kept)
    assert 0 < kept.sum() < found.graph.n_edges


@pytest.mark.parametrize("ablation", [COUNTER, circuits.Zero()])
@pytest.mark.parametrize("name", TINY)
def test_a_batch_decides_as_one_by_one(name, ablation):
    thresholds = [0.3, 0.1, 0.03, 0.01]
    one = sweep(name, thresholds, task(ablation=ablation), batch=1)
    many = sweep(name, thresholds, task(ablation=ablation), batch=24)
    np.testing.assert_array_equal(one.edges, many.edges)
    np.testing.assert_array_equal(one.whole, many.whole)
    np.testing.assert_array_equal(one.tested, many.tested)
    np.testing.assert_allclose(one.metric, many.metric, rtol=1e-4, atol=1e-5)
    # The first forward is that of the full model.
    np.testing.assert_array_equal(one.forwards, one.tested + 1)
    np.testing.assert_array_equal(one.calls, one.forwards)
    assert many.calls.sum() < one.calls.sum() / 3


@settings(max_examples=10, deadline=None)
@given(
    threshold=st.floats(0.003, 3),
    batch=st.sampled_from([2, 7, 24]),
    order=st.sampled_from(["late", "early"]),
    absolute=st.booleans(),
)
def test_a_batch_decides_as_one_by_one_anywhere(threshold, batch, order, absolute):
    options = {"order": order, "absolute": absolute}
    one = sweep("tiny_attention_only", [threshold], batch=1, **options)
    many = sweep("tiny_attention_only", [threshold], batch=batch, **options)
    np.testing.assert_array_equal(one.edges, many.edges)


def test_guesses_of_the_last_threshold_change_nothing():
    thresholds = [0.11, 0.105, 0.1]
    together = sweep("tiny_gpt2", thresholds)
    alone = [sweep("tiny_gpt2", [one]) for one in thresholds]
    np.testing.assert_array_equal(together.edges, [one.edges[0] for one in alone])
    assert together.calls.sum() < sum(one.calls[0] for one in alone)


def test_all_thresholds_and_receivers_run_one_program(monkeypatch):
    traced = []

    def run_from(*args):
        traced.append(args)
        return _suffix._run_from(*args)

    sweep("tiny_gpt2", [0.1], batch=8)
    monkeypatch.setattr(_suffix, "_run_from", run_from)
    sweep("tiny_gpt2", [0.2, 0.01], batch=8)
    assert not traced


def test_thresholds_at_the_ends():
    name = "tiny_gpt2"
    none = sweep(name, [1e9])
    every = sweep(name, [-1e9])
    assert not none.edges.any()
    np.testing.assert_array_equal(every.edges[0], every.graph.edges)
    # Nobody reads any node: only the senders of the logits were ever tested.
    assert none.tested[0] == len(none.graph.senders)


def test_the_metric_is_that_of_the_circuit():
    found, of = sweep("tiny_gpt2", [0.05]), task()
    gate = Gate(edges=jnp.asarray(found.edges[0], jnp.float32))
    values = [
        metric_of(model("tiny_gpt2"), found.graph, of, gate.edges, i) for i in range(3)
    ]
    np.testing.assert_allclose(found.metric[0], np.mean(values), rtol=1e-4)


def test_divergences_have_their_sign_changed():
    of = task()
    logits = jnp.stack([model("tiny_gpt2")(tokens)[0] for tokens in of.clean])
    kl = mijax.kl(logits)
    found = sweep("tiny_gpt2", [0.03], task(mijax.negative(kl)))
    assert 0 < found.edges.sum() < found.graph.n_edges
    wrong = sweep("tiny_gpt2", [0.03], task(kl))
    assert -found.metric[0] < 0.1 * wrong.metric[0]


def test_discover_marks_what_is_kept():
    method = circuits.ACDC(threshold=0.05)
    scores = circuits.discover(model("tiny_llama"), task(), method)
    assert scores.level == "edge"
    found = sweep("tiny_llama", [0.05])
    np.testing.assert_array_equal(scores.values, found.edges[0])


def test_a_sweep_ranks_edges():
    found = sweep("tiny_llama", [0.5, 0.05, 0.005])
    values = np.asarray(found.scores.values)
    assert set(np.unique(values)) <= {0, *np.array([0.5, 0.05, 0.005], np.float32)}
    np.testing.assert_array_equal(values >= 0.4, found.edges[0])
    np.testing.assert_array_equal(values > 0, found.edges.any(0))


class Interrupt(Exception):
    """What stops a sweep."""


def test_an_interrupted_sweep_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("mijax.core._journal.SECONDS_BETWEEN_SAVES", -1)
    path, thresholds = str(tmp_path / "acdc.npz"), [0.3, 0.05]
    whole = sweep("tiny_gpt2", thresholds)
    seen = []

    def stop(done, total):
        seen.append(done)
        if done > 0.7 * total:
            raise Interrupt

    def again(progress=None, thresholds=thresholds):
        return circuits.acdc_thresholds(
            model("tiny_gpt2"), task(), thresholds, progress=progress, resume=path
        )

    with pytest.raises(Interrupt):
        again(stop)
    resumed = again(lambda done, total: seen.append((done, total)))
    first = next(entry for entry in seen if isinstance(entry, tuple))
    assert first[0] > 0.5 * first[1]
    for ours, theirs in zip(
        jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(OutputError, match="another sweep"):
        again(thresholds=[0.3, 0.06])


def test_options_that_do_not_exist_are_refused(unchecked):
    with pytest.raises(ConfigError, match=r"order 'lat'\. Did you mean 'late'"):
        circuits.ACDC(order="lat")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="at least one removal"):
        circuits.ACDC(batch=0)
    for method in (circuits.HISP, circuits.Random):
        with pytest.raises(ConfigError, match="no level 'neuron'"):
            method(level="neuron")


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_attention_only"])
def test_head_importance_is_the_gradient_by_a_mask(name):
    """Against sites and their gradients."""
    of = task()
    graph = circuits.Graph.of(model(name))
    mlp = [port.name for port in graph.ports.writes if port.name == "mlp_out"]
    sites = {site: mijax.Site(site) for site in ("q", "k", "v", "z", *mlp)}
    values = mijax.capture(model(name), of.clean, sites)
    slopes = mijax.gradients(model(name), of.clean, of.metric, sites)

    def importance(sites):
        found = []
        for site in sites:
            product = np.asarray(values[site] * slopes[site])
            part = product.sum((2, 4) if site in "qkvz" else (2, 3))
            found.append(np.abs(part).mean(0).reshape(graph.n_layers, -1))
        return np.concatenate(found, axis=1)

    parts = importance(["z", *mlp])
    found = circuits.discover(model(name), of, circuits.HISP(level="node")).values
    norm = np.linalg.norm(parts, axis=1, keepdims=True)
    np.testing.assert_allclose(found[1:], (parts / norm).ravel(), rtol=1e-3)
    scores = circuits.discover(model(name), of, circuits.HISP(normalise=False))
    parts = importance(["q", "k", "v", *mlp])
    np.testing.assert_allclose(
        scores.values[0, :-1], parts.ravel(), rtol=1e-3, atol=1e-6
    )


def test_an_edge_lives_as_long_as_its_sender():
    scores = circuits.discover(model("tiny_gpt2"), task(), circuits.HISP())
    values = np.asarray(scores.values)
    into = {name: values[0, i] for i, name in enumerate(scores.graph.receivers)}
    sender = max(into[f"a0.h1<{letter}>"] for letter in "qkv")
    assert float(scores["logits <- a0.h1"]) == pytest.approx(sender)
    weakest = min(sender, into["a2.h3<k>"])
    assert float(scores["a2.h3<k> <- a0.h1"]) == pytest.approx(weakest)


def test_random_scores_follow_their_seed():
    draw = functools.partial(circuits.discover, model("tiny_gpt2"), task())
    edges = draw(circuits.Random(seed=3))
    np.testing.assert_array_equal(edges.values > 0, edges.graph.edges)
    np.testing.assert_array_equal(edges.values, draw(circuits.Random(seed=3)).values)
    assert (edges.values != draw(circuits.Random(seed=4)).values).any()
    assert draw(circuits.Random(level="node")).values.shape == (16,)


def metric_of(model, graph, of, edges, prompt):
    """One prompt under a mask, from the input on."""
    prompt = jnp.int32(prompt)
    reference = of.ablation.reference(model, graph, of, prompt)
    inputs = enter(model, graph, of.clean[prompt])
    gate = Gate(edges=jnp.asarray(edges, jnp.float32))
    ran = connected(model, graph, inputs, prompt=prompt, gate=gate, reference=reference)
    return score(model, of.metric, ran.final, prompt)


def spelt_out(model, of, threshold, *, whole):
    """ACDC in plain loops: names, sets and one full forward for each removal."""
    graph = circuits.Graph.of(model)

    @jax.jit
    def value(edges):
        each = [metric_of(model, graph, of, edges, i) for i in range(len(of))]
        return sum(each) / len(each)

    kept = np.array(graph.edges)
    now = float(value(kept))

    def attempt(receiver, senders):
        nonlocal now
        before = kept[senders, receiver].copy()
        kept[senders, receiver] = False
        after = float(value(kept))
        if now - after < threshold:
            now = after
            return False
        kept[senders, receiver] = before
        return True

    names = [name.split("<")[0] for name in graph.receivers]
    layers = sorted({name.split(".")[0] for name in names} - {"logits"}, reverse=True)
    # Of one layer, the MLP before the heads.
    layers = sorted(layers, key=lambda name: (-int(name[1:]), name[0] != "m"))
    for group in ["logits", *layers]:
        mine = [i for i, name in enumerate(names) if name.split(".")[0] == group]
        cut = set()
        for phase in ("whole", "single") if whole else ("single",):
            for receiver in reversed(mine):
                own = node(graph.receivers[receiver])
                read = group == "logits" or kept[graph.senders.index(own)].any()
                if not read or receiver in cut:
                    kept[:, receiver] = False
                elif phase == "single":
                    for sender in reversed(range(len(graph.senders))):
                        if graph.edges[sender, receiver]:
                            attempt(receiver, [sender])
                elif group.startswith("a"):
                    every = np.flatnonzero(graph.edges[:, receiver])
                    if not attempt(receiver, every):
                        cut.add(receiver)
    return kept
