"""Recurrences as matrices: the weight with which each token reads each earlier one."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def ssm_attention(
    delta: Float[Array, "seq heads"],
    a: Float[Array, "heads *state"],
    b: Float[Array, "seq heads state"],
    c: Float[Array, "seq heads state"],
) -> Float[Array, "heads seq key_seq"]:
    r"""Unrolls a selective state space into a matrix over tokens.

    $$M_{ij} = C_i \cdot \Big(\prod_{k=j+1}^{i} e^{\Delta_k A}\Big) \Delta_j B_j,
    \quad j \le i$$

    so that the recurrence reads $y_i = \sum_j M_{ij} u_j$ from its inputs (Ali et al.
    2024, arXiv:2403.01590). It is exact: no row sums to 1, and entries may be
    negative.

    Args:
        delta: step sizes.
        a: $A$, at most 0, a number for each head or for each feature of its state.
        b: what enters the state.
        c: what reads the state.

    Returns:
        The matrix of each head, 0 above the diagonal. Heads are computed one after the
        other; each takes `seq * key_seq * state` numbers.

    Examples:
        >>> one = jnp.ones((3, 1))
        >>> ssm_attention(one, -one[:1, 0] * 0, one[..., None], one[..., None])[0]
        Array([[1., 0., 0.],
               [1., 1., 0.],
               [1., 1., 1.]], dtype=float32)
    """
    seq = len(delta)
    a = jnp.broadcast_to(a.reshape(len(a), -1), (*b.shape[1:],))
    earlier = jnp.tril(jnp.ones((seq, seq), bool))[..., None]

    def head(inputs: tuple[Array, ...]) -> Array:
        delta, a, b, c = inputs
        time = jnp.cumsum(delta)
        # Differences of sums, and not a quotient of products, which vanish.
        past = jnp.where(earlier, time[:, None, None] - time[None, :, None], 0)
        decay = jnp.where(earlier, jnp.exp(past * a), 0)
        return jnp.einsum("in,ijn,jn->ij", c, decay, b * delta[:, None])

    heads_first = [jnp.moveaxis(x, 1, 0) for x in (delta, b, c)]
    return jax.lax.map(head, (heads_first[0], a, *heads_first[1:]))
