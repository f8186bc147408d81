"""A buffer of rows on the device: written to, shuffled and drawn from."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Int

from mijax.data.activations._batch import Batch


class Buffered(eqx.Module):
    """Where a stream of activations is.

    Attributes:
        tokens: state of the token stream.
        rows: the buffer, a `Batch` of `[slot, ...]`.
        order: all slots: first the free ones, then those with rows in the order in
            which they are drawn.
        free: number of free slots.
        refills: how often the buffer was filled up and shuffled.
    """

    tokens: Any
    rows: Batch
    order: Any
    free: Any
    refills: Any

    def at(self, **counts: int) -> "Buffered":
        """Returns the state with other counts."""
        fields: dict[str, Any] = {
            name: getattr(self, name) for name in self.__dataclass_fields__
        }
        for name, count in counts.items():
            fields[name] = np.asarray(count, np.int32)
        return Buffered(**fields)


@eqx.filter_jit(donate="all-except-first")
def fill(given: Any, rows: Batch) -> Batch:
    """Runs the model on a batch of tokens and writes the rows that are wanted.

    The i-th of them goes to the i-th of the free slots, from the last; the others to
    no slot at all.

    Args:
        given: the reader, tokens `[batch, seq]`, their lengths, which rows are wanted
            `[batch, seq]`, the order of the slots and how many are free; and how rows
            are laid out on the mesh.
        rows: the buffer; its memory is written over.

    Returns:
        The buffer.
    """
    (reader, tokens, lengths, mask, order, free), split = given
    mask = mask.reshape(-1)
    nowhere = rows.x.shape[0] + jnp.arange(mask.size, dtype=jnp.int32)
    slot = order[free - jnp.cumsum(mask, dtype=jnp.int32)]
    slot = jnp.where(mask, slot, nowhere)

    def write(buffer: Array, values: Array) -> Array:
        values = values.reshape(-1, *buffer.shape[1:])
        buffer = buffer.at[slot].set(values, mode="drop", unique_indices=True)
        return laid_out(buffer, split)

    return jax.tree.map(write, rows, reader(tokens, lengths))


@eqx.filter_jit
def shuffle(
    order: Int[Array, " slot"], free: Any, seed: Any, refill: Any
) -> Int[Array, " slot"]:
    """Permutes the slots that hold rows, and keeps the free ones before them."""
    key = jax.random.fold_in(jax.random.key(seed), refill)
    bits = jax.random.bits(key, order.shape)
    held = jnp.arange(order.shape[0], dtype=jnp.int32) >= free
    return jax.lax.sort((held, bits, order), num_keys=2)[-1]


@eqx.filter_jit
def draw(
    rows: Batch, order: Any, free: Any, size: int, split: NamedSharding | None
) -> Batch:
    """Takes the first rows in order."""
    slot = jax.lax.dynamic_slice_in_dim(order, free, size)
    return jax.tree.map(lambda a: laid_out(a[slot], split), rows)


def laid_out(rows: Array, split: NamedSharding | None) -> Array:
    """Splits rows over a mesh, if there is one."""
    return rows if split is None else jax.lax.with_sharding_constraint(rows, split)
