"""Lenses and direct attribution of models that state their readout."""

from typing import ClassVar

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from cases import CLEAN, LAST, model
from toys import weights

import mijax
from mijax import causal, lens, nn
from mijax import dictionaries as d
from mijax._errors import FrameError, ShapeError, SiteError
from mijax.core import AbstractBlock, AbstractModel

LAYERS, EMBED, VOCAB, CLASSES = 3, 32, 64, 5


class MeanBlock(AbstractBlock):
    """Mixes tokens by their mean, then one layer of tanh."""

    linear_writes: ClassVar[bool] = True

    mix: jax.Array
    dense: jax.Array

    def __call__(self, stream, rows, past=None):
        x = stream.read("attn_in")
        count = jnp.arange(1, len(x) + 1)[:, None]
        stream = stream.add("attn_out", jnp.cumsum(x, 0) / count @ self.mix)
        return stream.add("mlp_out", jnp.tanh(stream.read("mlp_in") @ self.dense))


class Own(AbstractModel):
    """A model that is no `nn.Transformer`."""

    table: jax.Array
    blocks: AbstractBlock
    norm: nn.LayerNorm
    head: nn.Unembedding
    states: bool = eqx.field(static=True, default=True)

    def embed(self, tokens, position):
        return self.table[tokens]

    def normalise(self, x):
        return self.norm(x)

    def unembed(self, x, ids=None):
        return self.head(x, ids)

    @property
    def readout(self):
        return nn.Readout(self.norm, self.head) if self.states else None


def own(blocks=None, *, states=True):
    mine = MeanBlock(weights(1, LAYERS, EMBED, EMBED), weights(2, LAYERS, EMBED, EMBED))
    norm = nn.LayerNorm(1 + weights(3, EMBED), weights(4, EMBED))
    head = nn.Unembedding(weights(5, VOCAB, EMBED), weights(6, VOCAB))
    blocks = mine if blocks is None else blocks
    return Own(weights(7, VOCAB, EMBED), blocks, norm, head, states)


@pytest.mark.parametrize("blocks", [None, model("llama").blocks])
def test_a_model_of_the_user_is_split_and_read(blocks):
    one, answer, wrong = own(blocks), jnp.array([4, 5, 6]), jnp.array([7, 8, 9])
    logits = mijax.run(one, CLEAN)
    split = lens.direct_logit_attribution(one, CLEAN, answer, wrong, position=LAST)
    at = logits[jnp.arange(3), LAST]
    expected = at[jnp.arange(3), answer] - at[jnp.arange(3), wrong]
    chex.assert_trees_all_close(split.total(), expected, atol=1e-4)
    every = lens.direct_logit_attribution(one, CLEAN, answer)
    expected = jnp.take_along_axis(logits, answer[:, None, None], 2)[..., 0]
    chex.assert_trees_all_close(every.total(), expected, atol=1e-4)
    assert jnp.abs(every.mlps).min() > 0
    chex.assert_shape(split.heads, (3, LAYERS, 1 if blocks is None else 4))
    read = lens.logit_lens(one, CLEAN)
    chex.assert_trees_all_close(read.logits[:, -1], logits, atol=1e-4)


def test_dictionaries_of_a_model_of_the_user():
    one, position = own(), jnp.array([6, 4, 6])
    sae = d.untrained(d.TopK(4), d.SAE(EMBED), latents=64, key=jax.random.key(1))
    answer, wrong = jnp.array([4, 5, 6]), jnp.array([7, 8, 9])
    site = mijax.Site("mlp_out", layer=1)
    found = d.direct_latent_attribution(
        one, sae, CLEAN, answer, wrong, site=site, position=position
    )
    whole = lens.direct_logit_attribution(one, CLEAN, answer, wrong, position=position)
    chex.assert_trees_all_close(found.total(), whole.mlps[:, 1], atol=1e-4)
    row = d.direction(sae, 9)
    expected = (row - row.mean()) * one.norm.weight @ one.head.weight.T
    chex.assert_trees_all_close(d.logit_weights(one, sae, 9), expected, atol=1e-5)


def test_the_tail_of_a_model_of_the_user_is_its_end():
    one = own(model("llama").blocks)
    tail = causal.Tail.of(one, causal.prefix(one, CLEAN, LAST), 0)
    logits, _ = tail(jnp.array([1, 30, 31]))  # prompt 1: tokens 30 and 31
    expected = mijax.run(one, CLEAN)[1, LAST[1], 30:32]
    chex.assert_trees_all_close(logits, expected, atol=1e-5)


def test_what_is_not_stated_is_refused():
    silent = own(states=False)
    quiet = own(model("llama").blocks, states=False)
    kept = causal.prefix(quiet, CLEAN, LAST)
    sae = d.untrained(d.TopK(4), d.SAE(EMBED), latents=64, key=jax.random.key(1))
    for call in (
        lambda: lens.direct_logit_attribution(silent, CLEAN, 3),
        lambda: d.logit_weights(silent, sae, 9),
        lambda: causal.Tail.of(quiet, kept, 0),
        lambda: lens.direct_attribution(
            mijax.model(jnp.sum, jnp.ones(3)), [1.0] * 3, 0
        ),
    ):
        with pytest.raises(FrameError, match="states no `readout`"):
            call()
    blocks = eqx.tree_at(lambda b: b.mix, own().blocks, own().blocks.mix)
    unstated = type("Unstated", (MeanBlock,), {"linear_writes": False})
    with pytest.raises(FrameError, match="linear_writes"):
        lens.direct_logit_attribution(own(unstated(blocks.mix, blocks.dense)), CLEAN, 3)


NORM = nn.LayerNorm(1 + weights(8, EMBED), weights(9, EMBED))
HEAD = nn.Unembedding(weights(10, CLASSES, EMBED), weights(11, CLASSES))
PARTS = [weights(20 + i, *shape) for i, shape in enumerate([(12, EMBED), (EMBED,)])]
BLOCKS = weights(30, LAYERS, 2, EMBED, EMBED)


def image_model(image, heads=4):
    """Patches and a class token, blocks of attention and MLP, class outputs."""
    patches, start = PARTS
    x = jnp.concatenate([start[None], image.reshape(-1, 12) @ patches])
    x = mijax.site("embed", x, "patch channel")

    def block(x, parts):
        keys = x.reshape(len(x), heads, -1)
        pattern = jax.nn.softmax(jnp.einsum("qhd,khd->hqk", keys, keys), -1)
        z = jnp.einsum("hqk,khd->qhd", pattern, keys)
        w_o = parts[0].reshape(heads, -1, EMBED)
        out = jnp.einsum("qhd,hde->qhe", z, w_o)
        out = mijax.site("result", out, "patch head channel")
        x = x + out.sum(1)
        out = mijax.site("mlp_out", jnp.tanh(x @ parts[1]), "patch channel")
        return mijax.site("resid_post", x + out, "patch channel"), None

    x, _ = jax.lax.scan(block, x, BLOCKS)
    return HEAD(NORM(x[0]))


def test_an_image_model_is_split_and_read():
    images = jax.random.normal(jax.random.key(3), (3, 4, 6, 2))
    writes = ("embed", "result", "mlp_out")
    readout = nn.Readout(NORM, HEAD, writes=writes, position=0)
    one = mijax.model(image_model, images[0], readout=readout)
    outputs = mijax.run(one, images)
    found = lens.direct_attribution(one, images, jnp.array([0, 1, 2]), 4)
    expected = outputs[jnp.arange(3), jnp.arange(3)] - outputs[:, 4]
    shapes = {"embed": (3,), "result": (3, LAYERS, 4), "mlp_out": (3, LAYERS)}
    assert {name: term.shape for name, term in found.terms.items()} == shapes
    total = sum(t.reshape(3, -1).sum(1) for t in found.terms.values()) + found.bias
    chex.assert_trees_all_close(total, expected, atol=1e-5)
    chex.assert_trees_all_close(found.rest, jnp.zeros(3), atol=1e-5)
    # The last block's MLP acts on the outputs only: with the scale kept, its term is
    # the ablation.
    kept = eqx.tree_at(lambda r: r.norm, readout, nn.Identity())
    plain = mijax.model(lambda x: HEAD(_last(x)), images[0], readout=kept)
    term = lens.direct_attribution(plain, images, 1).terms["mlp_out"][:, -1]
    ablate = mijax.Zero().at("mlp_out", layer=LAYERS - 1)
    change = mijax.run(plain, images)[:, 1] - mijax.run(plain, images, ablate)[:, 1]
    chex.assert_trees_all_close(term, change, atol=1e-5)
    read = lens.logit_lens(one, images)
    chex.assert_shape(read.logits, (3, LAYERS, CLASSES))
    chex.assert_trees_all_close(read.logits[:, -1], outputs, atol=1e-5)
    best = lens.logit_lens(one, images[0], top=1, position=2)
    chex.assert_shape(best.tokens, (LAYERS, 1))
    alone = lens.direct_attribution(one, images[1], 1, 4)
    chex.assert_trees_all_close(
        alone.terms, jax.tree.map(lambda t: t[1], found.terms), atol=1e-5
    )


def _last(image):
    _, acts = mijax.harvest(image_model, want=["resid_post"])(image)
    return acts.resid_post[-1, 0]


def test_terms_that_are_not_stated_are_the_rest_and_wrong_sites_are_refused():
    images = jax.random.normal(jax.random.key(3), (3, 4, 6, 2))
    few = nn.Readout(NORM, HEAD, writes=("embed", "result"), position=0)
    found = lens.direct_attribution(
        mijax.model(image_model, images[0], readout=few), images, 1
    )
    every = nn.Readout(NORM, HEAD, writes=("embed", "result", "mlp_out"), position=0)
    model = mijax.model(image_model, images[0], readout=every)
    missing = lens.direct_attribution(model, images, 1).terms["mlp_out"].sum(1)
    chex.assert_trees_all_close(found.rest, missing, atol=1e-5)
    wrong = nn.Readout(NORM, HEAD, writes=("mlp",))
    model = mijax.model(image_model, images[0], readout=wrong)
    with pytest.raises(SiteError, match="no site 'mlp'"):
        lens.direct_attribution(model, images, 1)
    narrow = nn.Readout(nn.Identity(), nn.Unembedding(jnp.ones((5, 8))))
    model = mijax.model(image_model, images[0], readout=narrow)
    with pytest.raises(ShapeError, match="stream of width 8"):
        lens.logit_lens(model, images)
