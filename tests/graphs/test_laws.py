"""Laws of attribution graphs: sums, interventions, attention, files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiles import compiles

import mijax
from mijax import dictionaries as d
from mijax import graphs

TOKENS = [5, 6, 7, 11]
MODELS = {
    "llama": mijax.testing.tiny_llama,
    "gpt2": mijax.testing.tiny_gpt2,
    "parallel": mijax.testing.tiny_parallel,
    "sandwich": mijax.testing.tiny_sandwich,
}


def coders():
    keys = jax.random.split(jax.random.key(1), 3)
    return {
        i: d.untrained(d.TopK(4), d.Transcoder(32), latents=64, key=key)
        for i, key in enumerate(keys)
    }


@pytest.fixture(scope="module", params=list(MODELS))
def case(request):
    # Biases belong to no node: without them sources add up to the whole.
    model = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 0 * leaf if path[-1].name[:2] in ("b_", "bi") else leaf,
        MODELS[request.param](jax.random.key(0)),
    )
    both = graphs.Replacement.of(model, coders())
    graph = graphs.attribute(both, TOKENS, targets=[9, 3], left_out=0)
    return request.param, model, both, graph


def test_sources_add_up_to_the_target(case):
    name, model, _, graph = case
    logits, acts = model(jnp.array(TOKENS))
    own = graph.kind == 0
    places = zip(
        *(a[own] for a in (graph.layer, graph.position, graph.index)), strict=True
    )
    read = acts.blocks.mlp_in
    pre = [read[i, at] @ coders()[i].weights.encoder[f] for i, at, f in places]
    np.testing.assert_allclose(graph.edges[own].sum(1), pre, atol=2e-5)
    if name == "sandwich":
        return  # its logits are capped
    expected = (logits[-1] - logits[-1].mean())[jnp.array([9, 3])]
    np.testing.assert_allclose(graph.edges[-2:].sum(1), expected, atol=2e-5)


def test_edges_run_forwards_only(case):
    *_, graph = case
    inner = graph.kind == 0
    later = graph.layer[None] >= graph.layer[:, None]
    after = graph.position[None] > graph.position[:, None]
    wrong = inner[:, None] & inner & (later | after)
    assert not graph.edges[wrong].any()


def test_removals_are_predicted(case):
    _, _, both, graph = case
    found = graphs.verify(both, TOKENS, graph, features=6)
    assert found.largest_error < 1e-5
    assert np.isfinite(found.correlation)


def test_frozen_intervention_is_a_run_with_everything_held(case):
    name, model, both, graph = case
    if name != "llama":
        pytest.skip("one model is enough")
    layer, at, f = (int(a[3]) for a in (graph.layer, graph.position, graph.index))
    moved = graphs.intervene(
        both, TOKENS, [(layer, at, f, 0.0)], freeze=graphs.FreezeAll()
    )
    names = ("pattern", "attn_norm_scale", "mlp_norm_scale", "mlp_out", "mlp_in")
    acts = mijax.capture(model, TOKENS, {n: mijax.Site(n) for n in names})
    write = graph.activation[3] * coders()[layer].weights.decoder[f]
    out = acts["mlp_out"].at[layer, at].add(-write)
    edits = [mijax.Patch(acts[n]).at(n) for n in names[:3]]
    edits.append(mijax.Patch(out).at("mlp_out"))
    by_hand = mijax.capture(model, TOKENS, mijax.Site("mlp_in"), edits=edits)
    np.testing.assert_allclose(moved.reads, by_hand, atol=1e-5)
    assert np.abs(by_hand - acts["mlp_in"]).max() > 0.01


def test_no_change_changes_nothing(case):
    _, model, both, graph = case
    place = int(graph.layer[0]), int(graph.position[0]), int(graph.index[0])
    change = (*place, float(graph.activation[0]))
    same = graphs.intervene(both, TOKENS, [change])
    logits = mijax.run(model, TOKENS)[-1]
    np.testing.assert_allclose(same.logits, logits - logits.mean(), atol=1e-5)


def test_heads_and_bypass_add_up(case):
    _, _, both, graph = case
    target = "logit9"
    found = graphs.head_loadings(both, TOKENS, graph, target, k=40)
    whole = found.heads.sum(2) + found.bypass
    np.testing.assert_allclose(whole, np.repeat(found.edges[:, None], 3, 1), atol=1e-5)
    # Before the source's layer nothing passes through heads, and a source at another
    # token passes through some head in the end.
    at = [graph.node(name) for name in found.sources]
    early = np.arange(3)[None] <= np.array(graph.layer)[at, None]
    early &= (graph.kind[at] == 0)[:, None]
    if case[0] != "parallel":
        np.testing.assert_allclose(found.heads[early], 0, atol=1e-6)
    elsewhere = graph.position[at] < len(TOKENS) - 1
    assert elsewhere.any()
    assert np.abs(found.heads[elsewhere]).max() > 0


def test_pairs_add_up_to_the_score(case):
    name, model, both, graph = case
    place = {"layer": 2, "head": 1, "query": 3, "key": 1}
    found = graphs.qk_attribution(both, TOKENS, graph, **place)
    scores = mijax.capture(model, TOKENS, mijax.Site("scores"))[2, 3, 1, 1]
    total = found.table.sum()
    if name == "sandwich":
        total = model.blocks.attention.cap(jnp.asarray(total))
    np.testing.assert_allclose(total, scores, atol=2e-5)
    if name == "llama":
        np.testing.assert_allclose(found.table[-1], 0, atol=1e-5)
    assert len(found.top(3)) == 3


def test_another_prompt_compiles_nothing(case):
    name, _, both, graph = case
    if name != "llama":
        pytest.skip("one model is enough")
    with compiles() as programs:
        other = graphs.attribute(both, [9, 8, 7, 6], targets=[1, 2], left_out=0)
    assert len(other.kind) == len(graph.kind)
    assert not programs
