"""Attention that computes keys and values from one latent per token (DeepSeek)."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mijax.core import site
from mijax.nn._attention import AbstractAttention, HeadNorm, OutputGate, project
from mijax.nn._basic import (
    Alibi,
    Identity,
    Product,
    RMSNorm,
    Rotary,
    RoundedAlibi,
    SinkSoftmax,
    SoftCap,
    Softmax,
)
from mijax.nn._patch_rotary import PatchRotary
from mijax.nn._relative import RelativePositions
from mijax.nn._smear import SmearedKeys

LATENT = "position latent"


class LatentAttention(AbstractAttention):
    r"""Multi-head latent attention (DeepSeek-AI 2024, arXiv:2405.04434).

    $$c = \mathrm{norm}(x W_c), \quad k_h = [x W_r;\, c W_k^h], \quad v_h = c W_v^h$$

    Keys and values of all heads are computed from one latent $c$ per token. The first
    features of a key are rotated, and are the same in all heads. Queries come from
    another latent, or from the stream if `w_q_latent` is `None`.

    Sites, next to those of `Attention`: `q_latent` and `kv_latent`, `[seq, latent]`,
    after their norms. They are marked where all readers see one stream, so not in runs
    of circuits. `q`, `k` and `v` hold a view of every head; queries and keys are longer
    than values.

    Attributes:
        w_q_up: makes the queries of each head.
        w_k_up: makes the features of keys that are not rotated.
        w_v_up: makes the values.
        w_k_rotated: makes the features of keys that are rotated, from the stream.
    """

    w_q_up: Float[Array, "*layer q_latent heads head_dim"]
    w_kv_latent: Float[Array, "*layer embed kv_latent"]
    w_k_rotated: Float[Array, "*layer embed rotated"]
    w_k_up: Float[Array, "*layer kv_latent heads key_dim"]
    w_v_up: Float[Array, "*layer kv_latent heads value_dim"]
    w_o: Float[Array, "*layer heads value_dim embed"]
    kv_latent_norm: RMSNorm | Identity
    rotary: Rotary | PatchRotary | None
    w_q_latent: Float[Array, "*layer embed q_latent"] | None = None
    q_latent_norm: RMSNorm | Identity = Identity()
    b_o: Float[Array, "*layer embed"] | None = None
    softmax: Softmax | SinkSoftmax = Softmax()
    product: Product = Product()
    keys: Identity | SmearedKeys = Identity()
    causal: bool = eqx.field(static=True, default=True)
    q_norm: HeadNorm = Identity()
    k_norm: HeadNorm = Identity()
    scale: float | None = eqx.field(static=True, default=None)
    cap: Identity | SoftCap = Identity()
    window: Int[Array, "*layer"] | None = None
    bias: Alibi | RoundedAlibi | RelativePositions | None = None
    gate: OutputGate | None = None

    def queries(
        self, x: Float[Array, "rows *heads embed"]
    ) -> Float[Array, "rows heads head_dim"]:
        """Return the queries of the stream that they read."""
        if self.w_q_latent is not None:
            x = marked("q_latent", self.q_latent_norm(x @ self.w_q_latent))
        return project(x, self.w_q_up, None)

    def keys_and_values(
        self,
        for_k: Float[Array, "rows *heads embed"],
        for_v: Float[Array, "rows *heads embed"],
    ) -> tuple[Array, Array]:
        """Return keys and values of the streams that they read."""
        latent_k = self.kv_latent_norm(for_k @ self.w_kv_latent)
        if for_k is for_v:
            latent_k = latent_v = marked("kv_latent", latent_k)
        else:
            latent_v = self.kv_latent_norm(for_v @ self.w_kv_latent)
        own = project(latent_k, self.w_k_up, None)
        shared = for_k @ self.w_k_rotated
        shared = shared if shared.ndim == 3 else shared[:, None]
        shared = jnp.broadcast_to(shared, (*own.shape[:2], shared.shape[-1]))
        k = jnp.concatenate([shared, own], axis=-1)
        return k, project(latent_v, self.w_v_up, None)

    @property
    def groups(self) -> int:
        """Number of query heads that share a key and a value head."""
        return 1


def marked(name: str, x: Float[Array, "rows *heads latent"]) -> Array:
    """Mark a latent, unless every head reads another stream."""
    return site(name, x, LATENT) if x.ndim == 2 else x
