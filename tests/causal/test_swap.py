"""Swaps as edits, of transformers and of perceptrons."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax import testing
from mijax._errors import PositionError, ShapeError
from mijax.causal import MLP, Subspaces, Swap, activation, blocks
from mijax.causal._methods import orthonormal

TOKENS = jax.random.randint(jax.random.key(5), (3, 6), 0, 64)
OTHERS = jax.random.randint(jax.random.key(6), (3, 2, 6), 0, 64)
SITE = mijax.Site("resid_post", layer=1, position=3)


@pytest.fixture(scope="module")
def model():
    return testing.tiny_attention_only(jax.random.key(0))


def turned(width, *sizes):
    stop = np.cumsum(sizes)
    row = np.arange(width)
    mask = [(row >= b - k) & (row < b) for b, k in zip(stop, sizes, strict=True)]
    basis = orthonormal(jax.random.normal(jax.random.key(9), (width, width))).T
    return Subspaces(basis, jnp.asarray(np.stack(mask), jnp.float32))


def vectors(model, tokens):
    return mijax.capture(model, tokens, SITE)


def test_swap_with_itself_is_the_identity(model):
    own = vectors(model, TOKENS)[:, None]
    sources = jnp.concatenate([own, own], axis=1)
    edit = Swap(turned(32, 5, 7), sources).at(SITE)
    np.testing.assert_array_equal(
        mijax.run(model, TOKENS, edit), mijax.run(model, TOKENS)
    )


def test_whole_space_is_the_source(model):
    sources = vectors(model, OTHERS[:, 0])
    swapped = mijax.run(model, TOKENS, Swap(turned(32, 32), sources[:, None]).at(SITE))
    for i, source in enumerate(sources):
        patched = mijax.run(model, TOKENS[i], mijax.Set(source).at(SITE))
        np.testing.assert_allclose(swapped[i], patched, atol=2e-5)


def test_batch_is_loop_and_two_swaps_are_one_after_the_other(model):
    sources = jnp.stack([vectors(model, OTHERS[:, v]) for v in range(2)], axis=1)
    spaces = turned(32, 5, 7)
    both = mijax.run(model, TOKENS, Swap(spaces, sources).at(SITE))
    for i in range(3):
        edits = [
            Swap(Subspaces(spaces.basis, spaces.mask[v : v + 1]), sources[i, v : v + 1])
            for v in range(2)
        ]
        edits = [edit.at(SITE) for edit in edits]
        one = mijax.run(model, TOKENS[i], edits)
        np.testing.assert_allclose(both[i], one, atol=1e-5)


def test_mlp_is_the_formula_and_takes_edits():
    model = MLP(6, width=8, layers=2, classes=3, key=jax.random.key(1))
    x, other = jax.random.normal(jax.random.key(2), (2, 6))
    hidden = [np.asarray(x)]
    for weight, bias in zip(model.weights[:-1], model.biases[:-1], strict=True):
        hidden.append(np.maximum(0, np.asarray(weight) @ hidden[-1] + np.asarray(bias)))
    logits, acts = model(x)
    np.testing.assert_allclose(acts.blocks.mlp_post[:, 0], hidden[1:], atol=1e-6)
    last = np.asarray(model.weights[-1]) @ hidden[-1] + np.asarray(model.biases[-1])
    np.testing.assert_allclose(logits, last, atol=1e-6)
    site = mijax.Site("mlp_post", layer=0, position=0)
    source = activation(model(other)[1], site)
    half = jax.tree.map(lambda leaf: leaf[0], blocks(8, (4,)))
    _, acts = model(x, Swap(half, source[None]).at(site))
    mixed = np.r_[source[:4], hidden[1][4:]]
    np.testing.assert_allclose(acts.blocks.mlp_post[0, 0], mixed, atol=1e-6)


def test_activation_is_what_capture_reads(model):
    acts = eqx.filter_jit(model)(TOKENS[0])[1]
    one = mijax.capture(model, TOKENS[0], SITE)
    np.testing.assert_allclose(activation(acts, SITE), one, atol=1e-5)


def test_refused(model, unchecked):
    acts = eqx.filter_jit(model)(TOKENS[0])[1]
    with pytest.raises(PositionError, match="which layer"):
        activation(acts, mijax.Site("resid_post", position=0))
    with pytest.raises(PositionError, match="which position"):
        activation(acts, mijax.Site("resid_post", layer=0))
    with pytest.raises(PositionError, match="which head"):
        activation(acts, mijax.Site("z", layer=0, position=0))
    with pytest.raises(ShapeError, match="do not fit"):
        mijax.run(model, TOKENS[0], Swap(turned(16, 4), jnp.ones((1, 16))).at(SITE))
    with pytest.raises(PositionError, match="3 prompts"):
        mijax.run(model, TOKENS[0], Swap(turned(32, 4), jnp.ones((3, 1, 32))).at(SITE))
