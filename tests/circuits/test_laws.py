"""Laws of the connected forward and of the methods that use it."""

import functools
import itertools

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax import circuits, nn
from mijax.circuits._scores import merged, standard_error
from mijax.circuits.forward._connected import Gate, connected, enter, score
from mijax.nn import Identity

MODELS = {
    "gpt2": mijax.testing.tiny_gpt2,
    "llama": mijax.testing.tiny_llama,
    "parallel": mijax.testing.tiny_parallel,
    "attention_only": mijax.testing.tiny_attention_only,
}
# Its attention writes as a whole, through a norm.
WHOLE = {"sandwich": mijax.testing.tiny_sandwich}
METRIC = mijax.logit_difference(3, 4)


@functools.cache
def model(name):
    return (MODELS | WHOLE)[name](jax.random.key(0))


@functools.cache
def task(ablation="counterfactual", first=2):
    random = np.random.default_rng(0)
    clean = random.integers(0, 60, (3, 7))
    corrupt = clean.copy()
    corrupt[:, first:] = random.integers(0, 60, (3, 7 - first))
    if ablation == "counterfactual":
        return circuits.Task(clean, corrupt, metric=METRIC)
    return circuits.Task(clean, metric=METRIC, ablation=circuits.Zero())


@eqx.filter_jit
def masked(model, graph, task, prompt, edges):
    """Runs one prompt with a mask over edges, the plain way."""
    reference = task.ablation.reference(model, graph, task, prompt)
    inputs = enter(model, graph, task.clean[prompt])
    gate = Gate(edges=edges)
    ran = connected(model, graph, inputs, gate=gate, reference=reference)
    return score(model, task.metric, ran.final, prompt)


@pytest.mark.parametrize("name", MODELS)
def test_full_is_the_clean_run_and_empty_the_corrupt_one(name):
    graph = circuits.Graph.of(model(name))
    for share, tokens in ((1.0, task().clean), (0.0, task().corrupt)):
        expected = METRIC(mijax.run(model(name), tokens))
        edges = jnp.full(graph.edges.shape, share)
        found = [
            masked(model(name), graph, task(), jnp.int32(i), edges) for i in (0, 1)
        ]
        chex.assert_trees_all_close(jnp.stack(found), expected[:2], atol=1e-4)


@pytest.mark.parametrize(
    ("name", "ablation"),
    [*itertools.product(MODELS, ("counterfactual", "zero")), ("sandwich", "zero")],
)
def test_exact_scores_are_those_of_patching_edge_by_edge(name, ablation):
    graph, given = circuits.Graph.of(model(name)), task(ablation)
    scores = circuits.discover(
        model(name), given, circuits.Exact(), keep_prompts=True, memory=2**20
    )
    assert scores.prompts is not None
    sender, receiver = np.nonzero(graph.edges)
    without = jnp.ones((len(sender), *graph.edges.shape))
    without = without.at[jnp.arange(len(sender)), sender, receiver].set(0)
    whole = jnp.ones(graph.edges.shape)
    for prompt in (0, 2):
        full = masked(model(name), graph, given, jnp.int32(prompt), whole)
        each = one_by_one(model(name), graph, given, jnp.int32(prompt), without)
        found = scores.prompts[prompt][sender, receiver]
        chex.assert_trees_all_close(found, np.asarray(full - each), atol=1e-4)


@eqx.filter_jit
def one_by_one(model, graph, task, prompt, masks):
    """Runs one prompt with every mask."""
    run = lambda edges: masked(model, graph, task, prompt, edges)  # noqa: E731
    return jax.lax.map(run, masks, batch_size=32)


@pytest.mark.parametrize("name", MODELS)
def test_gradient_in_the_mask_is_eap(name):
    graph = circuits.Graph.of(model(name))
    scores = circuits.discover(model(name), task(), circuits.EAP(), keep_prompts=True)
    ones = jnp.ones(graph.edges.shape)
    loss = lambda e: masked(model(name), graph, task(), jnp.int32(1), e)  # noqa: E731
    gradient = jax.grad(loss)(ones)
    assert scores.prompts is not None
    chex.assert_trees_all_close(scores.prompts[1], gradient, atol=1e-4)
    # Where there is no edge, the forward does not depend on the mask.
    assert not np.any(np.asarray(gradient)[~graph.edges])


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_integrated_gradients_are_complete(name):
    # Left and right sums together are the trapezoid rule: an error of 1 / steps^2.
    found = []
    for grid in ("left", "right"):
        method = circuits.EAPIG(steps=300, grid=grid, level="node")
        scores = circuits.discover(model(name), task(), method, keep_prompts=True)
        assert scores.prompts is not None
        found.append(scores.prompts[:, 0])
    clean, corrupt = (METRIC(mijax.run(model(name), t)) for t in both(task()))
    chex.assert_trees_all_close(sum(found) / 2, clean - corrupt, atol=1e-3)


def both(task):
    return task.clean, task.corrupt


def test_eap_is_exact_on_a_linear_model():
    linear = eqx.tree_at(
        lambda m: (m.blocks.norm_1, m.norm, m.blocks.attention.w_q),
        model("attention_only"),
        (Identity(), Identity(), 0 * model("attention_only").blocks.attention.w_q),
        is_leaf=lambda node: hasattr(node, "eps"),
    )
    if linear.blocks.attention.b_q is not None:
        linear = eqx.tree_at(
            lambda m: m.blocks.attention.b_q, linear, replace_fn=jnp.zeros_like
        )
    exact = circuits.discover(linear, task(), circuits.Exact())
    for method in (circuits.EAP(), circuits.EAPIG(steps=3)):
        found = circuits.discover(linear, task(), method)
        chex.assert_trees_all_close(found.values, exact.values, atol=1e-4)
    assert np.abs(exact.values).max() > 0.1


def test_grouped_queries_are_as_expanded_heads():
    llama = model("llama")
    groups = llama.blocks.attention.groups
    assert groups > 1
    expanded = eqx.tree_at(
        lambda m: (m.blocks.attention.w_k, m.blocks.attention.w_v),
        llama,
        replace_fn=lambda w: jnp.repeat(w, groups, axis=2),
    )
    for method in (circuits.EAP(), circuits.Exact()):
        one, other = (circuits.discover(m, task(), method) for m in (llama, expanded))
        chex.assert_trees_all_close(one.values, other.values, atol=1e-4)


def test_order_of_prompts_and_size_of_chunks_do_not_matter():
    given, turned = (
        task(),
        circuits.Task(task().clean[::-1], task().corrupt[::-1], metric=METRIC),
    )
    for method in (circuits.EAP(), circuits.EAPIG(), circuits.Exact()):
        one = circuits.discover(model("gpt2"), given, method)
        other = circuits.discover(model("gpt2"), turned, method, memory=1)
        chex.assert_trees_all_close(one.values, other.values, atol=1e-5)
        chex.assert_trees_all_close(one.error, other.error, atol=1e-4)


@pytest.mark.parametrize("method", [circuits.EAPIG(), circuits.Exact()])
def test_interrupted_and_resumed_is_uninterrupted(method, tmp_path, monkeypatch):
    monkeypatch.setattr("mijax.core._journal.SECONDS_BETWEEN_SAVES", -1.0)
    file = str(tmp_path / "scores.npz")
    calls = []

    def stop(done, total):
        calls.append(done)
        if len(calls) == 2:
            raise KeyboardInterrupt

    options = {"memory": 1, "resume": file}
    with pytest.raises(KeyboardInterrupt):
        circuits.discover(model("gpt2"), task(), method, progress=stop, **options)
    left, every = [], []
    found = circuits.discover(
        model("gpt2"), task(), method, progress=lambda d, t: left.append(d), **options
    )
    whole = circuits.discover(
        *(model("gpt2"), task(), method),
        memory=1,
        progress=lambda d, t: every.append(d),
    )
    chex.assert_trees_all_equal(found.values, whole.values)
    chex.assert_trees_all_equal(found.error, whole.error)
    # The first call was interrupted before its result was kept, or after.
    assert left in (every[1:], every[2:])
    with pytest.raises(mijax.MijaxError, match="another"):
        circuits.discover(model("llama"), task(), method, **options)
    # Another budget cuts the work elsewhere, so what is done would be something else.
    with pytest.raises(mijax.MijaxError, match="memory budget"):
        circuits.discover(model("gpt2"), task(), method, resume=file)


def test_a_metric_without_gradient_warns():
    reference = mijax.kl(mijax.run(model("gpt2"), task().clean))
    flat = circuits.Task(task().clean, task().clean, metric=reference)
    with pytest.warns(UserWarning, match="no gradient"):
        circuits.discover(model("gpt2"), flat, circuits.EAP())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a9.h0<q> <- input", "receiver"),
        ("m0 <- m1", "does not come before"),
        ("a0.h0", "not an edge"),
        ("a1.h0<q> <- a0.h9", "sender"),
    ],
)
def test_unknown_edges_are_refused(name, said):
    with pytest.raises(mijax.MijaxError, match=said):
        circuits.Graph.of(model("gpt2")).edge(name)


def test_misaligned_counterparts_are_refused():
    with pytest.raises(mijax.MijaxError, match="counterpart"):
        circuits.Task([[1, 2, 3]], [[1, 2]], metric=METRIC)


def test_a_gate_needs_what_it_replaces_by():
    graph = circuits.Graph.of(model("gpt2"))
    inputs = enter(model("gpt2"), graph, task().clean[0])
    ones = jnp.ones(graph.edges.shape)
    for gate in (Gate(edges=ones), Gate(nodes=ones[:, :1])):
        with pytest.raises(mijax.MijaxError, match="give a reference"):
            connected(model("gpt2"), graph, inputs, gate=gate)
    # A gradient that stops stops nothing that is written.
    stopped = Gate(constant=jnp.ones(len(graph.senders), bool))
    ran = connected(model("gpt2"), graph, inputs, gate=stopped)
    plain = connected(model("gpt2"), graph, inputs)
    chex.assert_trees_all_equal(ran.final, plain.final)


@pytest.mark.parametrize("method", [circuits.EAP(), circuits.Exact()])
def test_errors_are_standard_errors_of_the_mean(method):
    scores = circuits.discover(model("gpt2"), task(), method, keep_prompts=True)
    prompts = np.asarray(scores.prompts, np.float64)
    expected = prompts.std(0, ddof=1) / np.sqrt(len(prompts))
    chex.assert_trees_all_close(
        np.asarray(scores.error, np.float64), expected, rtol=1e-4, atol=1e-7
    )


def test_a_small_spread_around_a_large_mean_is_kept():
    prompts = 1e4 + np.random.default_rng(0).normal(size=(50, 3))
    moments = jnp.zeros((2, 3), jnp.float32)
    for start in range(0, 50, 8):
        moments = merged(moments, start, jnp.float32(prompts[start : start + 8]))
    chex.assert_trees_all_close(moments[0], jnp.float32(prompts.mean(0)), rtol=1e-6)
    chex.assert_trees_all_close(
        standard_error(moments[1], 50),
        jnp.float32(prompts.std(0, ddof=1) / np.sqrt(50)),
        rtol=1e-2,
    )


BFLOAT16 = (
    circuits.EAP(),
    circuits.EAP(level="neuron"),
    circuits.EAPIG(),
    circuits.EAPIGActivations(steps=2),
    circuits.EAP(rule=nn.GIM()),
    circuits.EAP(rule=nn.RelP()),
    circuits.AtPStar(),
    circuits.HISP(),
    circuits.InformationFlowRoutes(),
    circuits.Exact(),
    circuits.ACDC(threshold=0.05),
    circuits.EdgePruning(steps=2),
    circuits.UGS(steps=2),
    circuits.SubnetworkProbing(steps=2),
)


@functools.cache
def half(name):
    return jax.tree.map(
        lambda a: a.astype(jnp.bfloat16) if eqx.is_inexact_array(a) else a, model(name)
    )


@pytest.mark.parametrize("method", BFLOAT16, ids=lambda m: type(m).__name__)
def test_every_method_runs_in_bfloat16(method):
    # Means are float32, whatever the model is.
    mean = circuits.mean_ablation(half("gpt2"), task().clean)
    given = circuits.Task(task().clean, metric=METRIC, ablation=mean)
    found = circuits.discover(half("gpt2"), given, method)
    assert np.isfinite(np.asarray(found.values, np.float32)).all()
    assert found.values.dtype == jnp.float32


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_bfloat16_says_what_float32_says(name):
    method = circuits.EAPIG()
    wide, narrow = (
        circuits.discover(m(name), task(), method).values for m in (model, half)
    )
    # A number has three digits, and small differences of large ones fewer.
    assert np.corrcoef(wide.reshape(-1), narrow.reshape(-1))[0, 1] > 0.95
    scores = circuits.discover(half(name), task(), method)
    found = circuits.verify(half(name), task(), scores, top=5, sample=0)
    full = circuits.run_circuits(
        half(name), task(), [circuits.Circuit.full(scores.graph)]
    )
    clean = METRIC(mijax.run(half(name), task().clean))
    chex.assert_trees_all_close(
        np.asarray(full, np.float32)[0], np.asarray(clean, np.float32), atol=0.1
    )
    assert np.isfinite(np.asarray(found.exact.mean, np.float32)).all()


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("eap-ig", "'eap-ig'"),
        (circuits.EAPIG, "EAPIG"),
        (mijax.attribution.AtP(), "AtP"),
        (None, "None"),
    ],
)
def test_a_method_is_a_value(unchecked, method, said):
    with pytest.raises(
        mijax.MijaxError, match=rf"EAPIG\(steps=5\), got.*{said}"
    ) as caught:
        circuits.discover(model("gpt2"), task(), method)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 260
