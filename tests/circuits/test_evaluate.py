"""What circuits compute, and areas, against the reference; and the laws of both."""

import functools
from pathlib import Path

import cases
import chex
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax import circuits
from mijax._errors import ConfigError, SiteError
from mijax.circuits import Circuit, Faithfulness, Graph, Scores
from mijax.circuits.evaluation import _measure as module

GOLDEN = Path(__file__).parent.parent / "golden"
GOLDENS = ("gpt2", "llama")
FRACTIONS = (0.05, 0.2, 0.5, 1)


@functools.cache
def golden(name):
    with np.load(GOLDEN / "eap_ig" / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


@functools.cache
def trained(name):
    return mijax.models.load(str(GOLDEN / "hf" / name)).model


def golden_task(name, kind="patching"):
    found = golden(name)
    options = {"mean_fixed": {}, "mean_positional": {"per": "position"}}
    ablation = None
    if kind == "zero":
        ablation = circuits.Zero()
    elif kind in options:
        ablation = circuits.mean_ablation(
            trained(name), found["clean"], **options[kind]
        )
    metric = mijax.logit_difference(found["answer"], found["wrong"])
    return circuits.Task(
        found["clean"], found["corrupt"], metric=metric, ablation=ablation
    )


def golden_scores(name):
    values = jnp.asarray(golden(name)["edge_eap_ig_inputs"])
    return Scores(values, None, None, Graph.of(trained(name)), "edge", "golden")


@pytest.mark.parametrize("kind", ["patching", "zero", "mean_fixed", "mean_positional"])
@pytest.mark.parametrize("name", GOLDENS)
def test_edge_circuits_do_what_the_reference_s_do(name, kind):
    found = golden(f"{name}_circuits")
    graph = Graph.of(trained(name))
    ways = ("topn", "greedy")
    masks = np.concatenate([found[f"{way}_edges"].reshape(14, 16, 40) for way in ways])
    expected = np.concatenate([found[f"{way}_{kind}"].reshape(14, 6) for way in ways])
    values = circuits.run_circuits(
        trained(name), golden_task(name, kind), [Circuit(graph, m) for m in masks]
    )
    chex.assert_trees_all_close(values, expected, atol=tolerance(name, kind))


@pytest.mark.parametrize("name", GOLDENS)
def test_a_list_of_nodes_is_the_run_in_which_all_others_are_corrupt(name):
    """All edges among nodes: what others write is replaced, for every reader."""
    found, one = golden(name), trained(name)
    names = ("a0.h1", "a1.h3", "m1", "a2.h0")
    circuit = Circuit.from_nodes(Graph.of(one), names)
    assert circuit.nodes() == ("input", *names, "logits")
    assert Circuit.from_nodes(circuit.graph, circuit.nodes()) == circuit
    logits, acts = mijax.run(one, found["corrupt"]), {}
    for site in ("z", "mlp_out"):
        acts[site] = mijax.capture(one, found["corrupt"], mijax.Site(site))
    heads = [[h for h in range(4) if f"a{i}.h{h}" not in names] for i in range(3)]
    edits = [mijax.Patch(acts["z"]).at("z", layer=i, head=heads[i]) for i in range(3)]
    edits += [mijax.Patch(acts["mlp_out"]).at("mlp_out", layer=[0, 2])]
    expected = golden_task(name).metric(mijax.run(one, found["clean"], edits))
    values = circuits.run_circuits(one, golden_task(name), circuit)[0]
    chex.assert_trees_all_close(values, np.asarray(expected), atol=1e-4)
    assert np.abs(values - golden_task(name).metric(logits)).max() > 0.1


@pytest.mark.parametrize("kind", ["patching", "zero"])
@pytest.mark.parametrize("level", ["node", "neuron"])
@pytest.mark.parametrize("name", GOLDENS)
def test_coarse_circuits_do_what_the_reference_s_do(name, level, kind):
    found = golden(f"{name}_circuits")
    graph = Graph.of(trained(name))
    neurons = found.get(f"{level}_neurons", [None] * 3)
    masks = zip(found[f"{level}_edges"], neurons, strict=True)
    values = circuits.run_circuits(
        trained(name), golden_task(name, kind), [Circuit(graph, *m) for m in masks]
    )
    expected = found[f"{level}_{kind}"]
    chex.assert_trees_all_close(values, expected, atol=tolerance(name, kind))


def tolerance(name, kind):
    """A norm divides rounding by rounding there; see the README of the goldens."""
    return 1e-2 if (name, kind) == ("llama", "zero") else 1e-4


@pytest.mark.parametrize("name", GOLDENS)
def test_areas_are_the_benchmark_s(name):
    found = golden(f"{name}_circuits")
    result = circuits.evaluate(trained(name), golden_task(name), golden_scores(name))
    for i, one in enumerate((result.signed, result.absolute)):
        np.testing.assert_array_equal(one.n_edges, found["area_edge_counts"][i])
        expected = found["area_faithfulness"][i]
        chex.assert_trees_all_close(np.asarray(one.curve.mean), expected, atol=1e-4)
        np.testing.assert_allclose(one.cpr.mean, found["area_cpr"][i], atol=1e-4)
        np.testing.assert_allclose(one.cmd.mean, found["area_cmd"][i], atol=1e-4)
    assert float(result.cpr.mean) == float(result.signed.cpr.mean)
    assert float(result.cmd.mean) == float(result.absolute.cmd.mean)


def test_an_evaluation_prints_what_it_found():
    found = circuits.evaluate(
        trained("gpt2"), golden_task("gpt2"), golden_scores("gpt2")
    )
    assert [row.n_edges for row in found.table()][:10] == list(found.signed.n_edges)
    assert "CPR 0.932 [" in str(found)
    assert "CMD 0.156 [" in str(found)
    assert len(str(found).splitlines()) == 13


def test_random_rankings_of_large_models():
    """Nothing gets through until all edges are there: the printed baseline."""
    n = 4
    metric = np.zeros((10, n))
    metric[-1] = 1
    one = Faithfulness(
        np.array(circuits.MIB_FRACTIONS),
        np.zeros(10, int),
        metric,
        np.ones(n),
        0 * metric[0],
    )
    # The last trapezoid rises from 0 at 0.5 to 1 at 1; the distance is 1 before it.
    assert round(float(one.cpr.mean), 6) == 0.5 * (1 - 0.5) == 0.25
    assert round(float(one.cmd.mean), 6) == 0.749
    perfect = Faithfulness(
        one.fractions, one.n_edges, metric * 0 + 1, one.full, one.empty
    )
    assert round(float(perfect.cpr.mean), 6) == 0.999
    assert float(perfect.cmd.mean) == 0


def test_intervals_resample_ratios():
    random = np.random.default_rng(0)
    full = random.normal(3, 1, 400)
    metric = np.stack([0.5 * full, full])
    one = Faithfulness(np.array([0.5, 1]), np.array([1, 2]), metric, full, 0 * full)
    curve = one.curve
    # Half of the model's own metric in every prompt is half in every resample.
    np.testing.assert_allclose(curve.low, [0.5, 1], atol=1e-6)
    np.testing.assert_allclose(curve.high, [0.5, 1], atol=1e-6)
    metric[0] = random.normal(1.5, 1, 400)
    curve = Faithfulness(one.fractions, one.n_edges, metric, full, 0 * full).curve
    ratio = metric[0].mean() / full.mean()
    deviation = (metric[0] - ratio * full).std() / full.mean() / 20
    np.testing.assert_allclose(curve.mean[0], ratio, rtol=1e-5)
    np.testing.assert_allclose(
        curve.low[0], ratio - 1.96 * deviation, atol=deviation / 5
    )
    np.testing.assert_allclose(
        curve.high[0], ratio + 1.96 * deviation, atol=deviation / 5
    )


def task(ablation=None, prompts=...):
    metric = mijax.logit_difference(
        *(jnp.array(a)[prompts] for a in ([4, 5, 6], [7, 8, 9])),
        position=cases.LAST[prompts],
    )
    both = (cases.CLEAN[prompts], cases.CORRUPT[prompts])
    return circuits.Task(*both, metric=metric, ablation=ablation)


def random_circuits(graph, n, seed=0):
    random = np.random.default_rng(seed)
    shares = np.linspace(0.2, 0.9, n)[:, None, None]
    masks = random.random((n, *graph.edges.shape)) < shares
    masks[:, 0, -1] = True  # a path from the input to the logits
    return [Circuit(graph, mask & graph.edges) for mask in masks]


def random_scores(name, level="edge"):
    graph = Graph.of(cases.model(name))
    senders = len(graph.senders)
    shape = {"edge": graph.edges.shape, "node": (senders,), "neuron": (senders, 32)}
    values = np.random.default_rng(7).normal(size=shape[level])
    values = values * graph.edges if level == "edge" else values
    return Scores(jnp.asarray(values), None, None, graph, level, "random")


@pytest.mark.parametrize(
    ("name", "level"),
    [*((name, "edge") for name in cases.MODELS), ("gpt2", "node"), ("llama", "neuron")],
)
def test_full_is_one_and_empty_is_zero(name, level):
    model, graph = cases.model(name), Graph.of(cases.model(name))
    scores = random_scores(name, level)
    one = circuits.faithfulness(model, task(), scores, fractions=(0.001, 1))
    # One node or neuron in a thousand is none, or the disconnected best one.
    np.testing.assert_array_equal(one.n_edges, [0, graph.n_edges])
    np.testing.assert_allclose(one.curve.mean, [0, 1], atol=1e-6)
    for ends, tokens in ((one.full, cases.CLEAN), (one.empty, cases.CORRUPT)):
        expected = cases.METRIC(mijax.run(model, tokens))
        chex.assert_trees_all_close(ends, np.asarray(expected), atol=1e-4)


@pytest.mark.parametrize("name", cases.MODELS)
def test_many_circuits_at_once_are_a_loop(name):
    model = cases.model(name)
    some = random_circuits(Graph.of(model), 5)
    whole = circuits.run_circuits(model, task(), some)
    one_by_one = circuits.run_circuits(model, task(), some, memory=1)
    chex.assert_trees_all_close(one_by_one, whole, atol=1e-4)


def test_the_order_of_prompts_does_not_matter():
    model = cases.model("llama")
    some = random_circuits(Graph.of(model), 3)
    order = np.array([2, 0, 1])
    straight = circuits.run_circuits(model, task(), some)
    shuffled = circuits.run_circuits(model, task(prompts=order), some)
    alone = circuits.run_circuits(model, task(prompts=slice(1, 2)), some)
    chex.assert_trees_all_close(alone, straight[:, 1:2], atol=1e-4)
    chex.assert_trees_all_close(shuffled, straight[:, order], atol=1e-5)
    scores = random_scores("llama")
    one = circuits.evaluate(model, task(), scores)
    other = circuits.evaluate(model, task(prompts=order), scores)
    np.testing.assert_allclose(one.cpr.mean, other.cpr.mean, atol=1e-5)
    np.testing.assert_allclose(one.cmd.mean, other.cmd.mean, atol=1e-5)


def test_neurons_between_none_and_all():
    model = cases.model("gpt2")
    graph = Graph.of(model)
    some = random_circuits(graph, 2)
    ones = np.ones((len(graph.senders), 32), bool)
    with_all = [Circuit(graph, c.edges, ones) for c in some]
    none = Circuit(graph, graph.edges, ~ones)
    values = circuits.run_circuits(model, task(), [*some, *with_all])
    chex.assert_trees_all_close(values[:2], values[2:], atol=1e-5)
    halves = Circuit(graph, graph.edges, ones & (np.arange(32) < 16))
    found = circuits.run_circuits(model, task(), [*some, halves])
    chex.assert_trees_all_close(found[:2], values[:2], atol=1e-4)
    assert np.abs(found[2] - found[0]).max() > 1e-2
    with pytest.warns(UserWarning, match="no path"):
        nothing = circuits.run_circuits(model, task(), none)
    empty = circuits.run_circuits(model, task(), Circuit.empty(graph))
    chex.assert_trees_all_close(nothing, empty, atol=1e-4)


def test_one_program_for_all_sizes(no_programs, monkeypatch):
    model, graph = cases.model("parallel"), Graph.of(cases.model("parallel"))
    traces = []
    counted = module.score

    def count(*arguments):
        traces.append(1)
        return counted(*arguments)

    monkeypatch.setattr(module, "score", count)
    alone = task(circuits.Zero())
    for seed in range(3):
        circuits.run_circuits(model, alone, random_circuits(graph, 7, seed))
    circuits.run_circuits(model, alone, random_circuits(graph, 8, 9))
    circuits.run_circuits(model, alone, [*random_circuits(graph, 6, 4)] * 3)
    assert len(traces) == 1


def test_progress_counts_every_run_once():
    model = cases.model("gpt2")
    some = random_circuits(Graph.of(model), 3)
    calls = []
    circuits.run_circuits(
        model,
        task(),
        [*some, some[0]],
        progress=lambda *at: calls.append(at),
        memory=1,
    )
    assert calls == [(i, 9) for i in range(1, 10)]


@pytest.mark.parametrize("name", cases.MODELS)
def test_divergence(name):
    model, graph = cases.model(name), Graph.of(cases.model(name))
    some = random_circuits(graph, 2)
    ends = [Circuit.full(graph), Circuit.empty(graph)]
    found = circuits.divergence(model, task(), [*ends, *some])
    np.testing.assert_allclose(found[0], 0, atol=1e-5)
    clean = mijax.run(model, cases.CLEAN)
    metric = mijax.kl(clean, position=cases.LAST)
    expected = metric(mijax.run(model, cases.CORRUPT))
    chex.assert_trees_all_close(found[1], np.asarray(expected), atol=1e-4)
    assert (found[2:] > 0).all()


def test_what_is_refused():
    model, graph = cases.model("gpt2"), Graph.of(cases.model("gpt2"))
    other = Graph.of(cases.model("attention_only"))
    with pytest.raises(SiteError, match="the model's has 16 and 262"):
        circuits.run_circuits(model, task(), Circuit.full(other))
    with pytest.raises(ConfigError, match="no circuit to run"):
        circuits.run_circuits(model, task(), [])
    with pytest.raises(ConfigError, match="different graphs"):
        circuits.run_circuits(model, task(), [Circuit.full(g) for g in (graph, other)])
    pieces = [Circuit.full(graph), Circuit.of(graph, ["m1 <- m0"])]
    with pytest.warns(UserWarning, match="Circuit 1 has 1 edges, but no path"):
        circuits.run_circuits(model, task(), pieces)
    scores = random_scores("gpt2")
    with pytest.raises(ConfigError, match="increase"):
        circuits.faithfulness(model, task(), scores, fractions=(0.5, 0.1))
    same = circuits.Task(cases.CLEAN, cases.CLEAN, metric=cases.METRIC)
    with pytest.raises(ConfigError, match="Faithfulness is undefined"):
        circuits.faithfulness(model, same, scores, fractions=FRACTIONS)
