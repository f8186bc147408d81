"""What every architecture computes, against NumPy and dense products."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mijax import dictionaries as d
from mijax.data import Batch
from mijax.dictionaries.architectures._jump_relu import jump, over
from mijax.dictionaries.architectures._sparse import threshold_of
from mijax.train import Step

EMBED, LATENTS, K = 6, 10, 3
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(7, EMBED)).astype(np.float32)
BATCH = Batch(jnp.asarray(X))
STEP = Step(jnp.int32(4), jax.random.key(0))


def training(architecture, **options):
    return d.Training(
        architecture, d.SAE(EMBED), latents=LATENTS, steps=10, tied=False, **options
    )


def started(given):
    """Starts with biases that are not zero."""
    params, memory = given.start(jax.random.key(1))
    random = np.random.default_rng(1)
    noise = lambda a: jnp.asarray(a + 0.3 * random.normal(size=a.shape), a.dtype)  # noqa: E731
    return jax.tree.map(noise, params), memory


def losses(given, params, memory):
    loss, (numbers, after) = given.loss(params, memory, BATCH, STEP)
    return float(loss), numbers, after


def parts(params):
    w = jax.tree.map(np.asarray, params.weights)
    pre = (X - w.centre) @ w.encoder.T + w.bias
    return w, pre, np.linalg.norm(w.decoder, axis=1)


def error_of(w, latents, rows=None):
    out = latents @ (w.decoder if rows is None else rows) + w.centre
    return ((X - out) ** 2).sum(1).mean()


def top(pre, k):
    rank = np.argsort(np.argsort(-pre, axis=1), axis=1)
    return np.where(rank < k, np.maximum(pre, 0), 0)


def top_of_batch(pre, k):
    least = np.sort(pre.ravel())[-k * len(pre)]
    return np.where((pre >= least) & (pre > 0), pre, 0)


SHAPES = {
    "l1": lambda a: a,
    "tanh": np.tanh,
    "sqrt": lambda a: np.sqrt(a + 1e-4) - 1e-2,
}


@pytest.mark.parametrize("penalty", SHAPES)
def test_relu(penalty):
    given = training(d.ReLU(0.3, penalty=penalty), sparsity_warmup=10)
    params, memory = started(given)
    w, pre, norms = parts(params)
    latents = np.maximum(pre, 0)
    # Half of the warm-up is over: this is update 5 of 10.
    expected = (
        error_of(w, latents)
        + 0.3 * 0.5 * SHAPES[penalty](latents * norms).sum(1).mean()
    )
    loss, numbers, after = losses(given, params, memory)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(numbers["l0"], (latents > 0).sum(1).mean(), rtol=1e-6)
    spread = ((X - X.mean(0)) ** 2).sum(1).mean()
    np.testing.assert_allclose(numbers["fvu"], error_of(w, latents) / spread, rtol=1e-5)
    np.testing.assert_array_equal(
        after.since, np.where((latents > 0).any(0), 0, len(X))
    )


def test_gated():
    given = training(d.Gated(0.3))
    params, memory = started(given)
    w, pre, norms = parts(params)
    scale, bias = np.asarray(params.extra.scale), np.asarray(params.extra.bias)
    sizes = np.exp(scale) * (pre - w.bias) + bias
    latents = np.where(pre > 0, np.maximum(sizes, 0), 0)
    gates = np.maximum(pre, 0)
    expected = (
        error_of(w, latents) + 0.3 * (gates * norms).sum(1).mean() + error_of(w, gates)
    )
    loss, _, _ = losses(given, params, memory)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    gradient = jax.grad(lambda p: given.loss(p, memory, BATCH, STEP)[0])(params)
    alone = jax.grad(
        lambda dec: jnp.mean(jnp.sum((X - latents @ dec - w.centre) ** 2, axis=1))
    )(jnp.asarray(w.decoder))
    # The gates' own error and the penalty leave the decoder alone.
    chex.assert_trees_all_close(gradient.weights.decoder, alone, atol=1e-4)


def test_jump_relu_and_its_blurred_derivative():
    given = training(d.JumpReLU(0.3, threshold=0.2, bandwidth=0.5))
    params, memory = started(given)
    params = params._replace(extra=jnp.abs(params.extra))
    w, pre, _ = parts(params)
    threshold = np.asarray(params.extra)
    latents = np.where(pre > threshold, pre, 0)
    expected = error_of(w, latents) + 0.3 * (pre > threshold).sum(1).mean()
    loss, _, _ = losses(given, params, memory)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    count = (pre > threshold).sum(1).mean()
    given = training(d.JumpReLU(0.3, target=2.0, threshold=0.2, bandwidth=0.5))
    expected = error_of(w, latents) + 0.3 * EMBED * (count / 2 - 1) ** 2
    np.testing.assert_allclose(losses(given, params, memory)[0], expected, rtol=1e-5)
    z, t = jnp.array([0.1, 0.45, 0.7, 2.0]), jnp.full(4, 0.5)
    of_over = jax.vmap(jax.grad(over, argnums=(0, 1)), (0, 0, None))(z, t, 0.5)
    of_jump = jax.vmap(jax.grad(jump, argnums=(0, 1)), (0, 0, None))(z, t, 0.5)
    near = np.array([0, 1, 1, 0])
    chex.assert_trees_all_close(of_over, (np.zeros(4), -near / 0.5), atol=1e-6)
    chex.assert_trees_all_close(
        of_jump, (np.array([0, 0, 1.0, 1]), -0.5 * near / 0.5), atol=1e-6
    )


def test_topk_and_the_error_that_dead_latents_explain():
    given = training(d.TopK(K, aux=0.25, aux_k=2), dead_after=100)
    params, memory = started(given)
    dead = np.array([1, 0, 0, 1, 0, 0, 0, 1, 0, 0], bool)
    memory = memory._replace(since=jnp.where(dead, 100, 99).astype(jnp.int32))
    w, pre, _ = parts(params)
    latents = top(pre, K)
    missed = X - latents @ w.decoder - w.centre
    of_dead = top(np.where(dead, pre, -np.inf), 2)
    explained = ((missed - of_dead @ w.decoder) ** 2).sum(1).mean()
    loss, numbers, _ = losses(given, params, memory)
    expected = error_of(w, latents) + 0.25 * explained
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    # After 4 updates of 7 examples, none of the 10 was active in those 28.
    np.testing.assert_allclose(numbers["dead"], 1.0, rtol=1e-6)
    late = Step(jnp.int32(100), STEP.key)
    _, (numbers, _) = given.loss(params, memory, BATCH, late)
    np.testing.assert_allclose(numbers["dead"], 0.3, rtol=1e-6)
    # With one of the two dead that there is room for, half of it counts.
    memory = memory._replace(since=jnp.zeros(LATENTS, jnp.int32).at[3].set(100))
    alone = top(np.where(np.arange(LATENTS) == 3, pre, -np.inf), 1)
    explained = ((missed - alone @ w.decoder) ** 2).sum(1).mean()
    loss, _, _ = losses(given, params, memory)
    np.testing.assert_allclose(
        loss, error_of(w, latents) + 0.25 * 0.5 * explained, rtol=1e-5
    )


def test_sparse_gradients_are_dense_ones():
    given = training(d.TopK(K, aux=0.0))
    params, memory = started(given)

    def dense(params):
        w = params.weights
        pre = (X - w.centre) @ w.encoder.T + w.bias
        kept = jnp.where(top(np.asarray(jax.lax.stop_gradient(pre)), K) > 0, pre, 0)
        return jnp.mean(jnp.sum((X - kept @ w.decoder - w.centre) ** 2, axis=1))

    sparse = jax.grad(lambda p: given.loss(p, memory, BATCH, STEP)[0])(params)
    chex.assert_trees_all_close(sparse, jax.grad(dense)(params), atol=1e-5)


def test_batch_topk_and_its_threshold():
    given = training(d.BatchTopK(K))
    params, memory = started(given)
    w, pre, _ = parts(params)
    latents = top_of_batch(pre, K)
    loss, numbers, after = losses(given, params, memory)
    np.testing.assert_allclose(loss, error_of(w, latents), rtol=1e-5)
    np.testing.assert_allclose(numbers["l0"], K, rtol=1e-6)
    least = latents[latents > 0].min()
    np.testing.assert_allclose(after.running, least, rtol=1e-6)
    for index, memory in ((90, 0.9), (10**6, 0.999)):
        late, before = Step(jnp.int32(index), STEP.key), jnp.float32(1.0)
        _, (_, later) = given.loss(params, after._replace(running=before), BATCH, late)
        wanted = memory + (1 - memory) * least
        np.testing.assert_allclose(later.running, wanted, rtol=1e-6)
    found = given.dictionary(params, after._replace(running=jnp.float32(0.7)))
    np.testing.assert_allclose(found.encode(X), np.where(pre > 0.7, pre, 0), atol=1e-5)


def test_matryoshka():
    given = training(d.Matryoshka((0.2, 0.3, 0.5), k=K))
    params, memory = started(given)
    w, pre, _ = parts(params)
    latents = top_of_batch(pre, K)
    nested = [error_of(w, latents[:, :n], w.decoder[:n]) for n in (2, 5, 10)]
    loss, numbers, _ = losses(given, params, memory)
    np.testing.assert_allclose(loss, np.mean(nested), rtol=1e-5)
    np.testing.assert_allclose(numbers["error"], nested[-1], rtol=1e-5)


@pytest.mark.parametrize("count", [1, 5, 23])
def test_thresholds_are_those_of_sorting(count):
    x = RANDOM.normal(size=(5, 20)).astype(np.float32)
    found = threshold_of(jnp.asarray(x), count, STEP)
    assert float(found) == np.sort(x.ravel())[-count]
    # With fewer positive numbers than are asked for, it is 0.
    assert float(threshold_of(-jnp.abs(x), count, STEP)) == 0


def test_a_scale_is_undone():
    wiring = d.Transcoder(EMBED, 4)
    one, scaled = (
        d.untrained(
            d.ReLU(),
            wiring,
            latents=LATENTS,
            key=jax.random.key(0),
            tied=False,
            scale=s,
        )
        for s in (1.0, 4.0)
    )
    chex.assert_trees_all_close(scaled(X), one(4 * X) / 4, atol=1e-6)


@pytest.mark.parametrize("wiring", [d.Crosscoder(2, 3), d.CrossLayer(2, 3)])
def test_each_site_has_its_scale(wiring):
    scale, x = jnp.array([0.5, 4.0]), jnp.asarray(X.reshape(-1, 2, 3))
    options = {"latents": LATENTS, "key": jax.random.key(0), "tied": False}
    centre = jnp.ones((2, 3))
    one = d.untrained(d.ReLU(), wiring, centre=centre * scale[:, None], **options)
    each = d.untrained(d.ReLU(), wiring, centre=centre, scale=scale, **options)
    expected = one(x * scale[:, None]) / scale[:, None]
    chex.assert_trees_all_close(each(x), expected, atol=1e-6)
    latents = each.encode(x)
    of_rows = jnp.einsum("bl,lse->bse", latents, d.direction(each, jnp.arange(LATENTS)))
    chex.assert_trees_all_close(each(x), of_rows + centre, atol=1e-5)


@pytest.mark.parametrize("offset", [0, 3000])
def test_a_large_mean_is_subtracted_before_a_product_in_bfloat16(offset):
    x = X + offset * np.eye(EMBED, dtype=np.float32)[2]
    wiring, options = d.SAE(EMBED), {"latents": LATENTS, "key": jax.random.key(0)}
    w = d.untrained(d.ReLU(), wiring, centre=x.mean(0), **options).weights
    exact = (x.astype(np.float64) - np.asarray(w.centre)) @ np.asarray(w.encoder).T
    found = wiring.project(w, jnp.asarray(x), jnp.bfloat16) + wiring.offset(w)
    assert np.abs(found - exact).max() < 2**-6 * np.abs(exact).max()

    def plain(w):
        return ((x - w.centre) @ w.encoder.T + w.bias)[:, 1].sum()

    slope = jax.grad(lambda w: wiring.pre(w, jnp.asarray(x))[:, 1].sum())(w)
    chex.assert_trees_all_close(slope, jax.grad(plain)(w), rtol=1e-5, atol=1e-4)


def test_cross_layer_latents_write_to_later_layers_only():
    wiring = d.CrossLayer(3, 4)
    new = d.untrained(d.ReLU(), wiring, latents=9, key=jax.random.key(0), tied=False)
    x = jnp.asarray(RANDOM.normal(size=(3, 4)), jnp.float32)
    for latent in range(9):
        out = new.decode(jnp.zeros(9).at[latent].set(1.0))
        written = np.abs(np.asarray(out)).sum(1) > 0
        np.testing.assert_array_equal(written, np.arange(3) >= latent % 3)
        layer = x.at[latent % 3].add(1.0)
        changed = np.asarray(new.encode(layer) != new.encode(x))
        assert not changed[np.arange(9) % 3 != latent % 3].any()
