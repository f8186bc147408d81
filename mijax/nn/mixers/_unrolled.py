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
    r"""Unroll a selective state space into a matrix over tokens.

    $$M_{ij} = C_i \cdot \Big(\prod_{k=j+1}^{i} e^{\Delta_k A}\Big) \Delta_j B_j,
    \quad j \le i$$

    so that the recurrence equals $y_i = \sum_j M_{ij} u_j$ (Ali et al. 2024,
    arXiv:2403.01590). It is exact; rows need not sum to 1, and entries may be negative.

    Args:
        delta: step sizes.
        a: $A$, at most 0, one number per head or per feature of its state.
        b: $B$, the vectors that write the state.
        c: $C$, the vectors that read the state.

    Returns:
        The matrix for each head, 0 above the diagonal. Heads are computed one at a
        time; each takes `seq * key_seq * state` numbers.

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
        # Use differences of sums, since quotients of products underflow.
        past = jnp.where(earlier, time[:, None, None] - time[None, :, None], 0)
        decay = jnp.where(earlier, jnp.exp(past * a), 0)
        return jnp.einsum("in,ijn,jn->ij", c, decay, b * delta[:, None])

    heads_first = [jnp.moveaxis(x, 1, 0) for x in (delta, b, c)]
    return jax.lax.map(head, (heads_first[0], a, *heads_first[1:]))


def delta_attention(
    q: Float[Array, "seq heads key_dim"],
    k: Float[Array, "seq heads key_dim"],
    alpha: Float[Array, "seq heads"],
    beta: Float[Array, "seq heads"],
) -> Float[Array, "heads seq key_seq"]:
    r"""Unroll the gated delta rule into a matrix over tokens.

    With $\Gamma_{ij} = \prod_{k=j+1}^{i} \alpha_k$ and $D_\beta$ the diagonal matrix of
    $\beta$, the outputs are $o = M v$ with

    $$M = (Q K^\top \odot \Gamma)\,
    \big(I + D_\beta\, \mathrm{strict}(K K^\top \odot \Gamma)\big)^{-1} D_\beta$$

    where $\mathrm{strict}$ keeps the entries below the diagonal (Yang et al. 2024,
    arXiv:2406.06484 and 2412.06464). It is exact.

    Args:
        q: queries, scaled.
        k: keys.
        alpha: decay at each token.
        beta: rate of each token.

    Returns:
        The matrix for each head, 0 above the diagonal.

    Examples:
        >>> one = jnp.ones((2, 1))
        >>> delta_attention(one[..., None], one[..., None], one, one)[0]
        Array([[1., 0.],
               [0., 1.]], dtype=float32)
    """
    index = jnp.arange(len(q))

    def head(q: Array, k: Array, alpha: Array, beta: Array) -> Array:
        def row(before: Array, i: Array) -> tuple[Array, Array]:
            decay = jnp.where(index == i, 1.0, alpha[i] * before)
            return decay, decay

        decay = jax.lax.scan(row, jnp.zeros(len(index)), index)[1]
        overlap = beta[:, None] * jnp.tril(k @ k.T * decay, -1)
        solved = jax.scipy.linalg.solve_triangular(
            jnp.eye(len(index)) + overlap, jnp.diag(beta), lower=True
        )
        return (q @ k.T * decay) @ solved

    return jax.vmap(head, in_axes=1)(q, k, alpha, beta)
