"""The mixer of Mamba-2: a state space with one decay per head."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mijax.core import AbstractRows, Past, site
from mijax.nn._basic import Product, RMSNorm
from mijax.nn.mixers._conv import CHANNELS, CausalConv
from mijax.nn.mixers._mixer import SCALES, AbstractMixer
from mijax.nn.mixers._unrolled import ssm_attention


class Mamba2(AbstractMixer):
    r"""A state space with heads (Dao and Gu 2024, arXiv:2405.21060).

    An outer product adds the input $x$, with `head_dim` features, to its head's state,
    a matrix that decays by a single factor:

    $$h_t = e^{\Delta_t A} h_{t-1} + \Delta_t x_t B_t^\top, \quad
    y_t = h_t C_t + D x_t, \quad A = -e^{\texttt{a\_log}}$$

    Consecutive heads share $B$ and $C$, in `groups` groups; their sites `ssm_b` and
    `ssm_c` are views of each head. One convolution runs over $x$, $B$ and $C$, so
    `conv_out` holds all three, in this order. `mixer_scan` is $y$, `mixer_gate` the
    activation of the gate. Their product is normalized in each group, and that is
    `mixer_out`. `mixer_state` has the rows of a head's matrix one after the other,
    `head_dim * state` features.

    States are in float32.

    Attributes:
        w_in: weights for the input of the convolution.
        w_gate: weights for the input of the gate.
        w_delta: weights for $\Delta$.
        conv: the convolution.
        b_delta: bias of $\Delta$ before its softplus.
        a_log: logarithm of $-A$.
        skip: $D$.
        norm: norm of the gated output; the features of each group are normalized
            together.
        groups: number of groups, each with one $B$ and one $C$.
    """

    reads: ClassVar[tuple[tuple[str, str | None], ...]] = (
        ("w_in", None),
        ("w_gate", None),
        ("w_delta", "b_delta"),
    )
    unrolled_sites: ClassVar[tuple[str, ...]] = ("ssm_delta", "ssm_b", "ssm_c")

    w_in: Float[Array, "*layer embed conv_channel"]
    w_gate: Float[Array, "*layer embed channel"]
    w_delta: Float[Array, "*layer embed head"]
    conv: CausalConv
    b_delta: Float[Array, "*layer head"]
    a_log: Float[Array, "*layer head"]
    skip: Float[Array, "*layer head"]
    norm: RMSNorm
    w_out: Float[Array, "*layer channel embed"]
    b_out: Float[Array, "*layer embed"] | None = None
    groups: int = eqx.field(static=True, default=1)
    product: Product = Product()

    def __call__(
        self,
        x: Float[Array, "rows embed"],
        rows: AbstractRows,
        past: Past | None = None,
    ) -> Float[Array, "rows channel"]:
        """Mixes tokens; see `AbstractMixer`."""
        heads, channels = self.a_log.shape[-1], self.w_gate.shape[-1]
        mixed = self.conv(x @ self.w_in, rows, past)
        u, b, c = self._split(mixed)
        delta = jax.nn.softplus((x @ self.w_delta + self.b_delta).astype(jnp.float32))
        grouped = heads // self.groups
        xs = {
            "u": u.astype(jnp.float32),
            "delta": site("ssm_delta", delta[..., None], SCALES),
            "b": rows.mark_heads("ssm_b", b, grouped),
            "c": rows.mark_heads("ssm_c", c, grouped),
        }
        a = -jnp.exp(self.a_log.astype(jnp.float32))

        def step(state: Array, x: Any) -> Array:
            entering = (x["delta"] * x["u"])[:, :, None] * _each(x["b"], heads)
            return jnp.exp(x["delta"] * a[:, None]) * state + entering.reshape(
                state.shape
            )

        def read(state: Array, x: Any) -> Array:
            matrix = state.reshape(heads, channels // heads, -1)
            return (matrix * _each(x["c"], heads)).sum(-1)

        start = jnp.zeros((heads, channels // heads * b.shape[-1]), jnp.float32)
        out = rows.recur("mixer_state", step, start, xs, past, read=read)
        out = (out + u * self.skip[:, None]).astype(x.dtype)
        out = site("mixer_scan", out.reshape(len(out), channels), CHANNELS)
        gate = jax.nn.silu(x @ self.w_gate)
        gate = site("mixer_gate", gate, CHANNELS)
        out = self._normed(self.product("nc,nc->nc", gate, out))
        return site("mixer_out", out, CHANNELS)

    def unrolled(
        self, acts: Mapping[str, Float[Array, "seq ..."]]
    ) -> Float[Array, "heads seq key_seq"]:
        """Return the weight with which each token reads each earlier one.

        Args:
            acts: activations of one prompt and layer at `unrolled_sites`.
        """
        a = -jnp.exp(self.a_log.astype(jnp.float32))
        return ssm_attention(acts["ssm_delta"][..., 0], a, acts["ssm_b"], acts["ssm_c"])

    def _split(self, mixed: Float[Array, "rows conv_channel"]) -> tuple[Array, ...]:
        """Return the inputs of each head, and $B$ and $C$ for each group."""
        heads, channels = self.a_log.shape[-1], self.w_gate.shape[-1]
        count = (mixed.shape[-1] - channels) // 2
        u, b, c = jnp.split(mixed, (channels, channels + count), axis=-1)
        by_group = (len(mixed), self.groups, -1)
        return (
            u.reshape(len(mixed), heads, -1),
            b.reshape(by_group),
            c.reshape(by_group),
        )

    def _normed(self, x: Float[Array, "rows channel"]) -> Float[Array, "rows channel"]:
        """Normalizes the features of each group."""
        # Backward rules may freeze the norm.
        inner = getattr(self.norm, "inner", self.norm)
        plain: Any = RMSNorm(None, inner.eps)
        if inner is not self.norm:
            plain = dataclasses.replace(self.norm, inner=plain)
        normed = plain(x.reshape(len(x), self.groups, -1)).reshape(x.shape)
        return normed if inner.weight is None else normed * inner.weight


def _each(
    x: Float[Array, "groups state"], heads: int
) -> Float[Array, "heads one state"]:
    """Return the vector for each head's group."""
    return jnp.repeat(x, heads // len(x), axis=0)[:, None]
