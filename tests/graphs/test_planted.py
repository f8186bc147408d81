"""A network whose graph is known in closed form is recovered exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax import dictionaries as d
from mijax import graphs, nn

LAYERS, EMBED, HEADS, WIDTH, VOCAB = 2, 12, 2, 10, 20
TOKENS = (3, 7, 7, 1, 15)


@pytest.fixture(scope="module")
def planted():
    """MLPs that their transcoders copy, without norms: features are the neurons."""
    keys = iter(jax.random.split(jax.random.key(0), 9))
    draw = lambda *shape: 0.4 * jax.random.normal(next(keys), shape)  # noqa: E731
    attention = nn.Attention(
        w_q=draw(LAYERS, EMBED, HEADS, 6),
        w_k=draw(LAYERS, EMBED, HEADS, 6),
        w_v=draw(LAYERS, EMBED, HEADS, 6),
        w_o=draw(LAYERS, HEADS, 6, EMBED),
    )
    mlp = nn.MLP(
        draw(LAYERS, EMBED, WIDTH), draw(LAYERS, WIDTH, EMBED), None, None, nn.ReLU()
    )
    none = nn.Identity()
    model = nn.Transformer(
        embedding=nn.Embedding(draw(VOCAB, EMBED)),
        positions=None,
        blocks=nn.Block(none, attention, none, mlp),
        norm=none,
        unembedding=nn.Unembedding(draw(VOCAB, EMBED)),
        context=8,
    )
    coders = {
        i: d.Dictionary(
            *(d.ReLU(), d.Transcoder(EMBED)),
            d.Weights(mlp.w_in[i].T, jnp.zeros(WIDTH), mlp.w_out[i], jnp.zeros(EMBED)),
            *(None, None, jnp.float32(1)),
        )
        for i in range(LAYERS)
    }
    return model, graphs.Replacement.of(model, coders)


def test_the_graph_is_that_of_the_weights(planted):
    model, both = planted
    graph = graphs.attribute(both, TOKENS, targets=[4], left_out=0)
    acts = model(jnp.array(TOKENS))[1].blocks
    a, m = model.blocks.attention, model.blocks.mlp
    seq = len(TOKENS)
    # What a token's stream after layer 0 becomes in the stream that MLP 1 reads.
    ov = jnp.einsum("ehd,hdf->hef", a.w_v[1], a.w_o[1])
    move = jnp.einsum("qhk,hef->qkef", acts.pattern[1], ov)
    move = move + jnp.einsum("qk,ef->qkef", jnp.eye(seq), jnp.eye(EMBED))
    # Neuron j of MLP 0 at token k writes to neuron i of MLP 1 at token q.
    between = jnp.einsum(
        "kj,je,qkef,fi->qikj", acts.mlp_post[0], m.w_out[0], move, m.w_in[1]
    )
    fired = [np.argwhere(np.asarray(acts.mlp_post[i]) > 0) for i in range(LAYERS)]
    n = len(fired[0]), len(fired[1])
    found = graph.edges[n[0] : sum(n), : n[0]]
    q, i = fired[1].T
    k, j = fired[0].T
    expected = np.asarray(between)[q[:, None], i[:, None], k, j]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # Transcoders miss nothing.
    assert graph.quality().replacement > 0.999999
    assert np.abs(graph.edges[:, graph.where("error")]).max() < 1e-6
    # Neurons of MLP 1 write to the logit at the last token only.
    to = model.unembedding.weight[4] - model.unembedding.weight.mean(0)
    direct = np.asarray(acts.mlp_post[1] * (m.w_out[1] @ to))
    expected = np.where(q == seq - 1, direct[q, i], 0.0)
    np.testing.assert_allclose(graph.edges[-1, n[0] : sum(n)], expected, atol=1e-6)


def test_top_logits_and_few_features(planted):
    _, both = planted
    graph = graphs.attribute(both, TOKENS, targets=graphs.TopLogits(3, 0.0))
    assert graph.where("logit").sum() == 1
    graph = graphs.attribute(both, TOKENS, targets=graphs.TopLogits(3, 1.0))
    chances = graph.probability[graph.where("logit")]
    assert len(chances) == 3
    assert (np.diff(chances) <= 0).all()
    few = graphs.attribute(both, TOKENS, targets=[4], features=5)
    assert few.where("feature").sum() == 5
    assert few.sources(few.names[-1], 2)[0][1] != 0


BAD = {
    "two prompts": ({"prompt": [[1, 2], [3, 4]]}, "one prompt"),
    "left out": ({"left_out": 5}, "left_out must be below"),
    "no feature": ({"features": 0}, "features must be 1 or more"),
    "no target": ({"targets": []}, "list of token ids"),
    "target": ({"targets": [99]}, "token ids from 0 to 19"),
    "same target": ({"targets": [3, 3]}, "distinct"),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(planted, name):
    given, words = BAD[name]
    with pytest.raises(ValueError if name != "left out" else IndexError) as error:
        graphs.attribute(planted[1], **({"prompt": TOKENS} | given))
    assert words in str(error.value)


def test_refused_dictionaries(planted):
    model, _ = planted
    sae = d.untrained(d.ReLU(), d.SAE(EMBED), latents=8, key=jax.random.key(0))
    with pytest.raises(ValueError, match="Expected Transcoders"):
        graphs.Replacement.of(model, {0: sae})
    with pytest.raises(KeyError, match="layers 0 to 1"):
        graphs.Replacement.of(model, {5: sae})
    silent = d.untrained(
        d.ReLU(), d.Transcoder(EMBED), latents=8, key=jax.random.key(0), norm=0.0
    )
    with pytest.raises(ValueError, match="No feature is active"):
        graphs.attribute(graphs.Replacement.of(model, {0: silent}), TOKENS)


def test_edits_that_a_model_keeps_are_not_dropped(planted):
    model, both = planted
    kept = mijax.edited(model, mijax.Zero().at("mlp_out", layer=1))
    coders = {0: jax.tree.map(lambda leaf: leaf[0], both.coders.dictionary)}
    with pytest.raises(ValueError, match="readout"):
        graphs.Replacement.of(kept, coders)


def test_cycles_are_refused():
    edges = np.array([[0, 1.0, 0], [1.0, 0, 0], [1.0, 0, 0]])
    graph = graphs.AttributionGraph.by_hand(edges, ["feature", "feature", "logit"])
    with pytest.raises(ValueError, match="cycles"):
        graph.influence()
