"""The mixer of gated delta networks: a fast-weight memory of keys and values."""

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
from mijax.nn.mixers._unrolled import delta_attention

# Added to the squared norm of queries and keys before dividing by the norm.
LENGTH_EPS = 1e-6


class GatedDeltaNet(AbstractMixer):
    r"""Linear attention with the gated delta rule (Yang et al. 2024, arXiv:2412.06464).

    The state of a head maps keys to values. At each token it decays by $\alpha$, and
    the value stored for the token's key moves toward the token's value at the rate
    $\beta$:

    $$S_t = \alpha_t (I - \beta_t k_t k_t^\top) S_{t-1} + \beta_t k_t v_t^\top, \quad
    o_t = S_t^\top q_t / \sqrt{d}$$

    with queries and keys of length 1, $\beta = \sigma(x W_\beta)$ and
    $\alpha = \exp(-e^{\texttt{a\_log}}\, \mathrm{softplus}(x W_\alpha + b_\alpha))$.

    Consecutive value heads share a query and a key head. One convolution runs over
    queries, keys and values, so `conv_out` holds all three, in this order.
    `gdn_alpha` and `gdn_beta` are $\alpha$ and $\beta$, `mixer_scan` is $o$, and
    `mixer_out` its norm in each head times `mixer_gate`. `mixer_state` has the rows of
    $S$ one after the other, one row for each feature of a key.

    States are in float32.

    Attributes:
        w_in: weights for queries, keys and values before the convolution.
        w_gate: weights for the input of the gate.
        w_alpha: $W_\alpha$.
        w_beta: $W_\beta$.
        conv: the convolution.
        b_alpha: $b_\alpha$.
        a_log: logarithm of the decay's factor.
        norm: norm of the output of each head.
        key_heads: number of query and key heads.
    """

    reads: ClassVar[tuple[tuple[str, str | None], ...]] = tuple(
        (name, None) for name in ("w_in", "w_gate", "w_alpha", "w_beta")
    )
    unrolled_sites: ClassVar[tuple[str, ...]] = ("conv_out", "gdn_alpha", "gdn_beta")

    w_in: Float[Array, "*layer embed conv_channel"]
    w_gate: Float[Array, "*layer embed channel"]
    w_alpha: Float[Array, "*layer embed head"]
    w_beta: Float[Array, "*layer embed head"]
    conv: CausalConv
    b_alpha: Float[Array, "*layer head"]
    a_log: Float[Array, "*layer head"]
    norm: RMSNorm
    w_out: Float[Array, "*layer channel embed"]
    b_out: Float[Array, "*layer embed"] | None = None
    key_heads: int = eqx.field(static=True, default=1)
    product: Product = Product()

    def __call__(
        self,
        x: Float[Array, "rows embed"],
        rows: AbstractRows,
        past: Past | None = None,
    ) -> Float[Array, "rows channel"]:
        """Mixes tokens; see `AbstractMixer`."""
        heads, channels = self.a_log.shape[-1], self.w_gate.shape[-1]
        q, k, v = self._split(self.conv(x @ self.w_in, rows, past))
        rate = jax.nn.softplus((x @ self.w_alpha + self.b_alpha).astype(jnp.float32))
        alpha = jnp.exp(-jnp.exp(self.a_log.astype(jnp.float32)) * rate)
        beta = jax.nn.sigmoid((x @ self.w_beta).astype(jnp.float32))
        xs = {
            "q": q,
            "k": k,
            "v": v,
            "alpha": site("gdn_alpha", alpha[..., None], SCALES),
            "beta": site("gdn_beta", beta[..., None], SCALES),
        }

        def step(state: Array, x: Any) -> Array:
            kept = state.reshape(heads, -1, v.shape[-1]) * x["alpha"][:, None]
            held = jnp.einsum("hkv,hk->hv", kept, x["k"])
            change = (x["v"] - held) * x["beta"]
            return (kept + x["k"][:, :, None] * change[:, None]).reshape(state.shape)

        def read(state: Array, x: Any) -> Array:
            matrix = state.reshape(heads, -1, v.shape[-1])
            return jnp.einsum("hkv,hk->hv", matrix, x["q"])

        start = jnp.zeros((heads, q.shape[-1] * v.shape[-1]), jnp.float32)
        out = rows.recur("mixer_state", step, start, xs, past, read=read)
        out = out.reshape(len(out), channels).astype(x.dtype)
        out = site("mixer_scan", out, CHANNELS)
        normed = self.norm(out.reshape(len(out), heads, -1)).reshape(out.shape)
        gate = site("mixer_gate", jax.nn.silu(x @ self.w_gate), CHANNELS)
        return site("mixer_out", self.product("nc,nc->nc", normed, gate), CHANNELS)

    def unrolled(
        self, acts: Mapping[str, Float[Array, "seq ..."]]
    ) -> Float[Array, "heads seq key_seq"]:
        """Return the weight with which each token reads each earlier token's value.

        Args:
            acts: activations of one prompt and layer at `unrolled_sites`.
        """
        q, k, _ = self._split(acts["conv_out"])
        return delta_attention(
            q, k, acts["gdn_alpha"][..., 0], acts["gdn_beta"][..., 0]
        )

    def _split(self, mixed: Float[Array, "rows conv_channel"]) -> tuple[Array, ...]:
        """Returns scaled queries, keys and values of each head, in float32."""
        heads, channels = self.a_log.shape[-1], self.w_gate.shape[-1]
        width = (mixed.shape[-1] - channels) // 2
        mixed = mixed.astype(jnp.float32)
        q, k, v = jnp.split(mixed, (width, 2 * width), axis=-1)
        rows = len(mixed)

        def unit(x: Array) -> Array:
            x = x.reshape(rows, self.key_heads, -1)
            x = x * jax.lax.rsqrt((x**2).sum(-1, keepdims=True) + LENGTH_EPS)
            return jnp.repeat(x, heads // self.key_heads, axis=1)

        q, k = unit(q), unit(k)
        return q / q.shape[-1] ** 0.5, k, v.reshape(rows, heads, -1)
