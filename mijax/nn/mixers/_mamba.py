"""The mixer of Mamba: a selective state space."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mijax.core import AbstractRows, Past, site
from mijax.nn._attention import add
from mijax.nn._basic import Product
from mijax.nn.mixers._conv import CHANNELS, CausalConv
from mijax.nn.mixers._mixer import SCALES, AbstractMixer
from mijax.nn.mixers._unrolled import ssm_attention


class Mamba(AbstractMixer):
    r"""A selective state space (Gu and Dao 2023, arXiv:2312.00752).

    Every channel $c$ has a separate state, updated by its input $u$ after a causal
    convolution:

    $$h_t = e^{\Delta_t A_c} h_{t-1} + \Delta_t B_t u_t, \quad
    y_t = C_t \cdot h_t + D_c u_t, \quad A = -e^{\texttt{a\_log}}$$

    Channels are its heads: `head=` is a channel at the sites `ssm_delta` ($\Delta$),
    `ssm_b` ($B$), `ssm_c` ($C$) and `mixer_state` ($h$). All channels share $B$ and
    $C$; their sites are views of each channel, as those of grouped keys are.
    `mixer_scan` is $y$, `mixer_gate` the activation of the other branch, and
    `mixer_out` their product.

    States are in float32.

    Attributes:
        w_in: weights for the input of the convolution.
        w_gate: weights for the input of the gate.
        conv: the convolution.
        w_delta_in: first factor of the low-rank weights for $\Delta$.
        w_delta: second factor.
        b_delta: bias of $\Delta$ before its softplus.
        w_b: weights for $B$.
        w_c: weights for $C$.
        a_log: logarithm of $-A$.
        skip: $D$.
    """

    reads: ClassVar[tuple[tuple[str, str | None], ...]] = (
        ("w_in", "b_in"),
        ("w_gate", "b_gate"),
    )
    unrolled_sites: ClassVar[tuple[str, ...]] = ("ssm_delta", "ssm_b", "ssm_c")

    w_in: Float[Array, "*layer embed channel"]
    w_gate: Float[Array, "*layer embed channel"]
    conv: CausalConv
    w_delta_in: Float[Array, "*layer channel rank"]
    w_delta: Float[Array, "*layer rank channel"]
    b_delta: Float[Array, "*layer channel"]
    w_b: Float[Array, "*layer channel state"]
    w_c: Float[Array, "*layer channel state"]
    a_log: Float[Array, "*layer channel state"]
    skip: Float[Array, "*layer channel"]
    w_out: Float[Array, "*layer channel embed"]
    b_in: Float[Array, "*layer channel"] | None = None
    b_gate: Float[Array, "*layer channel"] | None = None
    b_out: Float[Array, "*layer embed"] | None = None
    product: Product = Product()

    def __call__(
        self,
        x: Float[Array, "rows embed"],
        rows: AbstractRows,
        past: Past | None = None,
    ) -> Float[Array, "rows channel"]:
        """Mixes tokens; see `AbstractMixer`."""
        u = self.conv(add(x @ self.w_in, self.b_in), rows, past)
        delta = add(u @ self.w_delta_in @ self.w_delta, self.b_delta)
        delta = jax.nn.softplus(delta.astype(jnp.float32))
        groups = u.shape[-1]
        xs = {
            "u": u,
            "delta": site("ssm_delta", delta[..., None], SCALES),
            "b": rows.mark_heads("ssm_b", (u @ self.w_b)[:, None], groups),
            "c": rows.mark_heads("ssm_c", (u @ self.w_c)[:, None], groups),
        }
        a = -jnp.exp(self.a_log.astype(jnp.float32))

        def step(state: Array, x: Any) -> Array:
            return jnp.exp(x["delta"] * a) * state + x["delta"] * x["b"] * _column(x)

        def read(state: Array, x: Any) -> Array:
            return (state * x["c"]).sum(-1)

        out = rows.recur("mixer_state", step, jnp.zeros_like(a), xs, past, read=read)
        out = (out + u * self.skip).astype(x.dtype)
        out = site("mixer_scan", out, CHANNELS)
        gate = self.conv.activation(add(x @ self.w_gate, self.b_gate))
        gate = site("mixer_gate", gate, CHANNELS)
        return site("mixer_out", self.product("nc,nc->nc", gate, out), CHANNELS)

    def unrolled(
        self, acts: Mapping[str, Float[Array, "seq ..."]]
    ) -> Float[Array, "heads seq key_seq"]:
        """Return the weight with which each token reads each earlier one.

        Args:
            acts: activations of one prompt and layer at `unrolled_sites`.
        """
        a = -jnp.exp(self.a_log.astype(jnp.float32))
        return ssm_attention(acts["ssm_delta"][..., 0], a, acts["ssm_b"], acts["ssm_c"])


def _column(x: Any) -> Float[Array, "channel 1"]:
    """Return the input of one token, with one row per channel."""
    return x["u"].astype(jnp.float32)[:, None]
