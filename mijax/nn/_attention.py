"""Self-attention with a site at every step."""

import abc
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mijax.core import AbstractCached, AbstractRows, Past, PerToken, site
from mijax.core.internal import HEADS, edited
from mijax.nn._basic import (
    AcrossHeads,
    Alibi,
    Identity,
    LayerNorm,
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

HeadNorm = RMSNorm | LayerNorm | AcrossHeads | Identity


class OutputGate(eqx.Module):
    """Multiply the values each head reads by a sigmoid of the stream (Qwen3-Next).

    The gate is the site `z_gate`; `z` is the product.
    """

    weight: Float[Array, "*layer embed heads head_dim"]
    product: Product = Product()

    def __call__(
        self,
        x: Float[Array, "rows *heads embed"],
        z: Float[Array, "rows heads head_dim"],
    ) -> Float[Array, "rows heads head_dim"]:
        """Multiplies the values `z` that the heads of the stream `x` read."""
        gate = jax.nn.sigmoid(project(x, self.weight, None))
        return self.product("nhd,nhd->nhd", site("z_gate", gate, HEADS), z)


class AbstractAttention(eqx.Module):
    """Attention with any computation of queries, keys and values from the stream."""

    w_o: eqx.AbstractVar[Array]
    b_o: eqx.AbstractVar[Array | None]
    rotary: eqx.AbstractVar[Rotary | PatchRotary | None]
    softmax: eqx.AbstractVar[Softmax | SinkSoftmax]
    product: eqx.AbstractVar[Product]
    keys: eqx.AbstractVar[Identity | SmearedKeys]
    causal: eqx.AbstractVar[bool]
    q_norm: eqx.AbstractVar[HeadNorm]
    k_norm: eqx.AbstractVar[HeadNorm]
    scale: eqx.AbstractVar[float | None]
    cap: eqx.AbstractVar[Identity | SoftCap]
    window: eqx.AbstractVar[Array | None]
    bias: eqx.AbstractVar[Alibi | RoundedAlibi | RelativePositions | None]
    gate: eqx.AbstractVar[OutputGate | None]

    cache: ClassVar[Mapping[str, AbstractCached]] = MappingProxyType(
        {"k": PerToken(), "v": PerToken()}
    )

    def __call__(
        self,
        x: Any,
        rows: AbstractRows,
        past: Past | None = None,
    ) -> Float[Array, "kept heads head_dim"]:
        """Mixes values across tokens.

        Args:
            x: the normalised residual stream, `[rows, embed]`; or three of them, for
                queries, keys and values, which may have one input for each query head,
                `[rows, heads, embed]`. Under grouped-query attention heads that share a
                key may then see different ones; the weights are shared all the same.
            rows: position, prompt and lane of each row; from the queries on, only the
                rows that leave the block are computed.
            past: `k` (before norm and rotary) and `v` of tokens that are not rows, as
                `capture` gives them, `[prompt, key_seq, heads, head_dim]`.

        Returns:
            The site `z`: what each head reads from other tokens.
        """
        for_q, for_k, for_v = x if isinstance(x, tuple) else (x, x, x)
        q = site("q", self.queries(rows.keep(for_q)), HEADS)
        k, v = self.keys_and_values(for_k, for_v)
        k, v = self._shared(rows, "k", k), self._shared(rows, "v", v)
        past_k, past_v = (past["k"], past["v"]) if past is not None else (None, None)
        pattern = self._pattern(q, k, rows, past_k)
        values = rows.keys(v, _thinned(past_v, v))
        grouped = pattern.reshape(
            *pattern.shape[:-3], v.shape[1], -1, *pattern.shape[-2:]
        )
        z = self.product("...hgqk,...khd->...qhgd", grouped, values)
        z = rows.after.flat(z.reshape(*z.shape[:-3], q.shape[1], v.shape[-1]))
        z = z if self.gate is None else self.gate(rows.keep(for_q), z)
        return site("z", z, HEADS)

    def out(self, z: Float[Array, "rows heads head_dim"]) -> Float[Array, "rows embed"]:
        """Return the outputs of all heads, and the bias."""
        return add(jnp.einsum("nhd,hde->ne", z, self.w_o), self.b_o)

    @abc.abstractmethod
    def queries(
        self, x: Float[Array, "rows *heads embed"]
    ) -> Float[Array, "rows heads head_dim"]:
        """Return the queries of the stream that they read."""

    @abc.abstractmethod
    def keys_and_values(
        self,
        for_k: Float[Array, "rows *heads embed"],
        for_v: Float[Array, "rows *heads embed"],
    ) -> tuple[Array, Array]:
        """Return keys and values of the streams that they read."""

    def reads(self, asking: AbstractRows) -> Bool[Array, "*lane seq key_seq"]:
        """Return which keys each query of causal attention reads."""
        return asking.causal(self.window)

    @property
    def heads(self) -> int:
        """Number of query heads."""
        return self.w_o.shape[-3]

    def _shared(self, rows: AbstractRows, name: str, x: Array) -> Array:
        """Mark keys or values, one for each query head or for each group of them."""
        return rows.mark_heads(name, x, self.heads // x.shape[1])

    def _pattern(
        self,
        q: Float[Array, "kept heads head_dim"],
        k: Float[Array, "rows kv_heads head_dim"],
        rows: AbstractRows,
        past_k: Array | None,
    ) -> Float[Array, "*lane heads seq key_seq"]:
        """Compute the scores of queries with keys, and their softmax."""
        asking = rows.after
        q, k = self.q_norm(q), self.k_norm(k)
        if self.rotary is not None:
            q = site("q_rotated", self.rotary(q, asking.position), HEADS)
            k = self._shared(rows, "k_rotated", self.rotary(k, rows.position))
        past_k = _thinned(past_k, k)
        if past_k is not None:
            past_k = self.k_norm(past_k)
            if self.rotary is not None:
                past_k = self.rotary(past_k, jnp.arange(past_k.shape[1]))
        heads, kv_heads, head_dim = q.shape[1], k.shape[1], q.shape[2]
        queries = asking.queries(q)
        keys = self.keys(rows.keys(k, past_k))
        queries = queries.reshape(*queries.shape[:-2], kv_heads, -1, head_dim)
        divisor = head_dim**0.5 if self.scale is None else 1 / self.scale
        scores = self.product("...qhgd,...khd->...hgqk", queries, keys) / divisor
        scores = self.cap(scores.reshape(*scores.shape[:-4], heads, *scores.shape[-2:]))
        if self.bias is not None:
            scores = self.bias(scores, *asking.positions())
        if self.causal:
            reads = jnp.expand_dims(self.reads(asking), -3)
            return pattern_of(self.softmax, scores, asking, reads=reads)
        reads = real = rows.real_keys()
        if self.window is not None:
            near = jnp.expand_dims(jnp.abs(asking.distance()) < self.window, -3)
            reads = near if real is None else near & real
        return pattern_of(self.softmax, scores, asking, reads=reads, real=real)


class Attention(AbstractAttention):
    """Multi-head attention; grouped-query where there are fewer key/value heads.

    Query head `h` reads key/value head `h // (heads / kv_heads)`. Biases and rotary
    positions are `None` where the model has none. `keys` is what happens to the keys
    of a sequence before queries see them: nothing, or `SmearedKeys`. `causal=False`
    lets every query read every key that is not padding (encoders). `cache` is what a
    block with this attention keeps of earlier tokens.

    Attributes:
        softmax: makes the pattern of scores; `SinkSoftmax` adds a learned logit.
        q_norm: norm of the queries before rotary positions, of each head
            (`RMSNorm`, `LayerNorm`) or of all heads together (`AcrossHeads`).
        k_norm: norm of the keys before rotary positions.
        scale: factor of the scores; `head_dim**-0.5` by default.
        cap: what is applied to the scaled scores: nothing, or `SoftCap`. The site
            `scores` comes after it: scores are what the softmax reads, up to the mask.
        window: tokens that a query reads, its own included, one number for each layer;
            `None` reads all tokens before it in every layer. An encoder reads the
            same number of tokens after it.
        together: group of each position, -1 for none: in causal attention, queries also
            read later keys in their own group, such as one image (Gemma 3).
        bias: bias of the scores by position, `Alibi` or `RelativePositions`; `scores`
            come after it.
        gate: gate that multiplies the values read, before the site `z`.
    """

    w_q: Float[Array, "*layer embed heads head_dim"]
    w_k: Float[Array, "*layer embed kv_heads head_dim"]
    w_v: Float[Array, "*layer embed kv_heads head_dim"]
    w_o: Float[Array, "*layer heads head_dim embed"]
    b_q: Float[Array, "*layer heads head_dim"] | None = None
    b_k: Float[Array, "*layer kv_heads head_dim"] | None = None
    b_v: Float[Array, "*layer kv_heads head_dim"] | None = None
    b_o: Float[Array, "*layer embed"] | None = None
    rotary: Rotary | PatchRotary | None = None
    softmax: Softmax | SinkSoftmax = Softmax()
    product: Product = Product()
    keys: Identity | SmearedKeys = Identity()
    causal: bool = eqx.field(static=True, default=True)
    q_norm: HeadNorm = Identity()
    k_norm: HeadNorm = Identity()
    scale: float | None = eqx.field(static=True, default=None)
    cap: Identity | SoftCap = Identity()
    window: Int[Array, "*layer"] | None = None
    together: Int[Array, "*layer seq"] | None = None
    bias: Alibi | RoundedAlibi | RelativePositions | None = None
    gate: OutputGate | None = None

    def queries(
        self, x: Float[Array, "rows *heads embed"]
    ) -> Float[Array, "rows heads head_dim"]:
        """Return the queries of the stream that they read."""
        return project(x, self.w_q, self.b_q)

    def keys_and_values(
        self,
        for_k: Float[Array, "rows *heads embed"],
        for_v: Float[Array, "rows *heads embed"],
    ) -> tuple[Array, Array]:
        """Return keys and values of the streams that they read."""
        k = project(for_k, self.w_k, self.b_k)
        return k, project(for_v, self.w_v, self.b_v)

    def reads(self, asking: AbstractRows) -> Bool[Array, "*lane seq key_seq"]:
        """Return which keys each query of causal attention reads."""
        groups = self.together
        if groups is None:
            return asking.causal(self.window)
        query, key = asking.positions()
        of = lambda at: groups.at[at].get(mode="fill", fill_value=-1)  # noqa: E731
        reads = (query >= key) | ((of(query) == of(key)) & (of(query) >= 0))
        return reads if self.window is None else reads & (query - key < self.window)

    @property
    def groups(self) -> int:
        """Number of query heads that share a key and a value head."""
        return self.w_q.shape[-2] // self.w_k.shape[-2]


def pattern_of(
    softmax: Callable[[Array], Array],
    scores: Float[Array, "*lane heads seq key_seq"],
    asking: AbstractRows,
    *,
    reads: Bool[Array, "..."] | None = None,
    real: Bool[Array, "..."] | None = None,
) -> Float[Array, "*lane heads seq key_seq"]:
    """Mark scores, and return and mark their softmax.

    Args:
        softmax: normalizes the scores of a query.
        scores: of queries with keys.
        asking: the rows of the queries.
        reads: which keys each query may read; all that are real by default.
        real: which keys are not padding; all by default.

    Returns:
        The pattern, in the precision of the scores.
    """
    scores = asking.mark_grid("scores", scores)
    dtype, cut = scores.dtype, edited("scores")
    reads = real if reads is None else reads
    if cut:
        # An edit may cut scores off by minus infinity, all of a token's too.
        reads = (scores > -jnp.inf) & (True if reads is None else reads)
    if reads is not None:
        scores = jnp.where(reads, scores, jnp.finfo(dtype).min)
    pattern = softmax(scores).astype(dtype)
    if cut and reads is not None:
        pattern = jnp.where(reads, pattern, 0)
    pattern = asking.mark_grid("pattern", pattern)
    if real is not None and edited("pattern"):
        # An edit of the whole pattern reads no padding either.
        pattern = jnp.where(real, pattern, 0)
    return pattern


def _thinned(past: Array | None, own: Array) -> Array | None:
    """Take every group's first view of past keys or values, if heads share them."""
    return None if past is None else past[..., :: past.shape[-2] // own.shape[1], :]


def project(
    x: Float[Array, "rows *heads embed"],
    weight: Float[Array, "embed kv_heads head_dim"],
    bias: Float[Array, "kv_heads head_dim"] | None,
) -> Float[Array, "rows heads head_dim"]:
    """Reads every head's input from the residual stream.

    Heads read one stream, or each its own; consecutive heads then share a weight.
    """
    if x.ndim == 2:
        return add(jnp.einsum("ne,ehd->nhd", x, weight), bias)
    rows, heads, embed = x.shape
    grouped = x.reshape(rows, weight.shape[1], -1, embed)
    out = jnp.einsum("nkge,ekd->nkgd", grouped, weight)
    return add(out, None if bias is None else bias[:, None]).reshape(rows, heads, -1)


def add(x: Array, bias: Array | None) -> Array:
    """Adds a bias where there is one."""
    return x if bias is None else x + bias
