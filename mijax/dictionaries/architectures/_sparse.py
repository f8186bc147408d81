"""Products that touch a few rows of a matrix per example, forwards and backwards.

A dense product reads and differentiates all rows; these read, and send gradients to,
only the rows that are named.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

CHUNK = 64


@jax.custom_vjp
def mix(
    values: Float[Array, "batch k"],
    index: Int[Array, "batch k"],
    rows: Float[Array, "latent out"],
) -> Float[Array, "batch out"]:
    """Adds up rows: `sum_k values[b, k] rows[index[b, k]]`."""
    one = lambda v, i: v @ rows[i]  # noqa: E731
    return _chunked(one, values, index)


def _mix_forward(values: Any, index: Any, rows: Any) -> Any:
    return mix(values, index, rows), (values, index, rows)


def _mix_backward(kept: Any, given: Any) -> Any:
    values, index, rows = kept
    found = _chunked(lambda g, i: rows[i] @ g, given, index)
    return found.astype(values.dtype), None, _spread(values, index, given, rows)


mix.defvjp(_mix_forward, _mix_backward)


@jax.custom_vjp
def known(
    values: Float[Array, "batch k"],
    x: Float[Array, "batch in"],
    index: Int[Array, "batch k"],
    rows: Float[Array, "latent in"],
) -> Float[Array, "batch k"]:
    """Returns `values`, which are known to be `rows[index[b, k]] @ x[b]`.

    The gradient goes to the rows that are named; `x` is data and gets none.
    """
    del x, index, rows
    return values


def _known_forward(values: Any, x: Any, index: Any, rows: Any) -> Any:
    return values, (x, index, rows)


def _known_backward(kept: Any, given: Any) -> Any:
    x, index, rows = kept
    return (
        jnp.zeros_like(given),
        jnp.zeros_like(x),
        None,
        _spread(given, index, x, rows),
    )


known.defvjp(_known_forward, _known_backward)


def _chunked(function: Any, *batched: Array) -> Array:
    """Maps over examples, so many at a time that their rows stay in cache."""
    size = batched[0].shape[0]
    return jax.lax.map(
        lambda args: function(*args), batched, batch_size=math.gcd(size, CHUNK)
    )


def _spread(values: Array, index: Array, vectors: Array, rows: Array) -> Array:
    """Sends `values[b, k] vectors[b]` to row `index[b, k]`, and adds up."""
    size = math.gcd(values.shape[0], CHUNK)
    parts = jax.tree.map(
        lambda a: a.reshape(-1, size, *a.shape[1:]), (values, index, vectors)
    )

    def add(total: Array, part: Any) -> tuple[Array, None]:
        values, index, vectors = part
        products = values[..., None] * vectors[:, None]
        flat = products.reshape(-1, vectors.shape[-1]).astype(total.dtype)
        return total.at[index.reshape(-1)].add(flat), None

    # Times zero: an empty total that varies over devices as what is added does.
    zero = jnp.zeros(rows.shape, jnp.promote_types(rows.dtype, jnp.float32))
    zero = zero + 0 * (values.ravel()[0] * vectors.ravel()[0]).astype(zero.dtype)
    return jax.lax.scan(add, zero, parts)[0].astype(rows.dtype)


@jax.custom_vjp
def shifted(
    x: Float[Array, "batch latent"], offset: Float[Array, " latent"]
) -> Float[Array, "batch latent"]:
    """Adds an offset; its gradient is a product with ones.

    The same sum over examples as a reduction takes as long as a matrix product on a
    CPU.
    """
    return x + offset


def _shifted_forward(x: Any, offset: Any) -> Any:
    return x + offset, None


def _shifted_backward(_: None, given: Any) -> Any:
    ones = jnp.ones(given.shape[0], given.dtype)
    return given, jnp.matmul(ones, given, precision="highest")


shifted.defvjp(_shifted_forward, _shifted_backward)


def hits(latents: Float[Array, "batch latent"]) -> Int[Array, " latent"]:
    """Counts the examples in which each latent is active.

    A few examples after the other: nothing of the size of `latents` is written.
    """
    parts = latents.reshape(-1, math.gcd(latents.shape[0], CHUNK), latents.shape[1])

    def add(total: Array, part: Array) -> tuple[Array, None]:
        return total + (part > 0).sum(0, dtype=jnp.int32), None

    # Times zero: it varies over devices as what is added does.
    return jax.lax.scan(add, 0 * (latents[0] > 0).astype(jnp.int32), parts)[0]


def largest(
    x: Float[Array, "batch latent"], k: int, step: Any
) -> tuple[Float[Array, "batch k"], Int[Array, "batch k"], Int[Array, "batch k"]]:
    """Finds the `k` largest of each example over all devices that share the latents.

    Args:
        x: this device's latents.
        k: how many.
        step: how to speak to the others.

    Returns:
        The candidates of this device, their places in it, and their rank among the
        candidates of all devices (`k` for those that are not among the largest).
        Equal numbers rank by latent, as on one device.
    """
    values, index = jax.lax.top_k(x, min(k, x.shape[1]))
    every = step.gather(values)
    if every.shape[0] == 1:
        return values, index, jnp.broadcast_to(jnp.arange(values.shape[1]), index.shape)
    # Side by side, devices in order: the first of equal numbers is the first latent.
    side = jnp.moveaxis(every, 0, 1).reshape(x.shape[0], -1)
    _, winners = jax.lax.top_k(side, min(k, side.shape[1]))
    last = jnp.full(side.shape, k, jnp.int32)
    place = jnp.arange(winners.shape[1], dtype=jnp.int32)
    ranks = jax.vmap(lambda r, i: r.at[i].set(place))(last, winners)
    ranks = ranks.reshape(x.shape[0], every.shape[0], -1)
    return values, index, ranks[:, step.part()]


def threshold_of(
    x: Float[Array, "batch latent"], count: Any, step: Any
) -> Float[Array, ""]:
    """Returns the `count`-th largest of all positive numbers over all devices.

    Positive floats are ordered as their bits are, so bisection on bits is exact: one
    pass over the numbers per bit, and nothing is sorted or sent but counts.
    """
    bits = jax.lax.bitcast_convert_type(
        jnp.maximum(x, 0).astype(jnp.float32), jnp.int32
    )

    def narrow(
        bounds: tuple[Array, Array], _: None
    ) -> tuple[tuple[Array, Array], None]:
        low, high = bounds
        middle = low + (high - low + 1) // 2
        above = step.over_model(step.total((bits >= middle).sum()))
        enough = above >= count
        return (
            jnp.where(enough, middle, low),
            jnp.where(enough, high, middle - 1),
        ), None

    start = (jnp.int32(0), jnp.int32(0x7F7FFFFF))
    (low, _), _ = jax.lax.scan(narrow, start, None, length=31)
    return jax.lax.bitcast_convert_type(low, jnp.float32)
