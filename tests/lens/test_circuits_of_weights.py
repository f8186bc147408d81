"""Eigenvalues, composition and paths equal what dense matrices say."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import model

import mijax
from mijax import lens
from mijax._errors import ShapeError, SiteError
from mijax.nn import Identity

NAMES = ("attention_only", "llama")


def dense(name):
    """Every head's W_OV and W_QK as embed x embed matrices, rows in, columns out."""
    whole = model(name)
    block = jax.tree.map(np.asarray, whole.blocks)
    attention, norm = block.attention, block.norm_1
    embed = attention.w_q.shape[1]
    keep = np.eye(embed)
    if hasattr(norm, "bias"):
        keep = keep - 1 / embed

    def of(layer, head):
        reads = keep @ np.diag(norm.weight[layer].astype(np.float64))
        kv = head // attention.groups
        q = reads @ attention.w_q[layer, :, head]
        k, v = (reads @ w[layer, :, kv] for w in (attention.w_k, attention.w_v))
        return v @ attention.w_o[layer, head], q @ k.T

    final = np.diag(np.asarray(whole.norm.weight, np.float64))
    readout = keep @ final @ np.asarray(whole.unembedding.weight).T
    return of, np.asarray(whole.embedding.weight, np.float64), readout


def same_spectrum(found, matrix):
    """True if values are the eigenvalues of a large matrix that are not 0."""
    expected = np.linalg.eigvals(matrix)
    order = np.argsort(-np.abs(expected))
    assert np.abs(expected[order[len(found) :]]).max() < 1e-4
    size = np.abs(expected).max()
    apart = np.abs(found[:, None] - expected[order[: len(found)]][None])
    assert max(apart.min(0).max(), apart.min(1).max()) < 2e-4 * size


@pytest.mark.parametrize("name", NAMES)
def test_eigenvalues_are_those_of_the_vocabulary(name):
    of, tokens, readout = dense(name)
    ov, qk = (f(model(name)) for f in (lens.ov_eigenvalues, lens.qk_eigenvalues))
    moved = lens.qk_eigenvalues(model(name), through=(0, 1))
    assert not moved[0].any()
    for layer, head in ((0, 1), (1, 0), (1, 3)):
        writes, asks = of(layer, head)
        full = tokens @ writes @ readout
        same_spectrum(ov[layer, head], full)
        same_spectrum(qk[layer, head], tokens @ asks @ tokens.T)
        share = lens.positivity(ov)[layer, head]
        every = np.linalg.eigvals(full)
        assert abs(share - np.trace(full) / np.abs(every).sum()) < 1e-3
        if layer > 0:
            same_spectrum(moved[layer, head], tokens @ asks @ (tokens @ of(0, 1)[0]).T)


@pytest.mark.parametrize("name", NAMES)
def test_composition_is_the_ratio_of_dense_norms(name):
    of, _, _ = dense(name)
    found = lens.composition(model(name))
    norm = np.linalg.norm
    for one, two in (((0, 0), (1, 3)), ((0, 3), (1, 1))):
        (write, _), (later, asks) = of(*one), of(*two)
        size = norm(write) * norm(asks)
        at = (*one, *two)
        np.testing.assert_allclose(found.q[at], norm(write @ asks) / size, rtol=1e-5)
        np.testing.assert_allclose(found.k[at], norm(write @ asks.T) / size, rtol=1e-5)
        both = norm(write @ later) / (norm(write) * norm(later))
        np.testing.assert_allclose(found.v[at], both, rtol=1e-5)
    assert not found.k[1, :, :2].any()


def test_random_heads_score_as_random_matrices_do():
    """Of isotropic factors, E[score^2] is near 1 / embed but for small ranks."""
    bare = eqx.tree_at(lambda m: m.blocks.norm_1, model("attention_only"), Identity())
    found = lens.random_composition(bare, draws=400)
    random = np.random.default_rng(1)
    drawn = []
    for _ in range(300):
        v, k, q = random.standard_normal((3, 32, 8))
        o = random.standard_normal((8, 32))
        one, two = v @ o, k @ q.T
        parts = np.linalg.norm(one) * np.linalg.norm(two)
        drawn.append(np.linalg.norm(one @ two) / parts)
    for kind in ("q", "k", "v"):
        mean, spread = (getattr(part, kind)[0, 0, 1, 0] for part in found)
        assert abs(mean - np.mean(drawn)) < 0.3 * spread
        assert 0.8 < spread / np.std(drawn) < 1.25
    assert not found.mean.k[1].any()


@pytest.mark.parametrize("bare", [False, True])
def test_paths_add_up_to_the_logits(bare):
    whole = model("attention_only")
    if bare:
        where = lambda m: (m.norm, m.blocks.norm_1)  # noqa: E731
        whole = eqx.tree_at(where, whole, (Identity(), Identity()))
    tokens = jnp.array([5, 9, 30, 7, 2, 9])
    expand = eqx.filter_jit(lambda model: lens.path_expansion(model, tokens))
    paths = expand(whole)
    logits = mijax.run(whole, tokens)
    np.testing.assert_allclose(paths.total(), logits, atol=2e-4)
    split = sum(paths.of_order(order) for order in range(3)) + paths.bias
    np.testing.assert_allclose(split, logits, atol=2e-4)
    if bare:  # a virtual head is a product of patterns, and of matrices
        _, acts = whole(tokens)
        one, two = acts.blocks.pattern[0, :, 1], acts.blocks.pattern[1, :, 3]
        w_v, w_o = whole.blocks.attention.w_v, whole.blocks.attention.w_o
        x = two @ one @ acts.embed @ w_v[0, :, 1] @ w_o[0, 1] @ w_v[1, :, 3] @ w_o[1, 3]
        which = paths.heads.index((1, 3))
        np.testing.assert_allclose(
            paths.logits[which], x @ whole.unembedding.weight.T, atol=2e-4
        )


def test_what_cannot_be_done_is_refused():
    with pytest.raises(SiteError, match="give a model of AttentionBlock"):
        lens.path_expansion(model("llama"), jnp.array([1, 2]))
    with pytest.raises(ShapeError, match="vmap"):
        lens.path_expansion(model("attention_only"), jnp.array([[1, 2]]))
    with pytest.raises(SiteError, match=r"no head \(0, 7\)"):
        lens.qk_eigenvalues(model("llama"), through=(0, 7))
