"""Residual blocks."""

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array

from mijax.core import (
    AbstractBlock,
    AbstractCached,
    AbstractRows,
    AbstractStream,
    Past,
    site,
)
from mijax.core.internal import edited
from mijax.nn._attention import AbstractAttention
from mijax.nn._basic import Identity, LayerNorm, OptionalNorm, RMSNorm
from mijax.nn._mlp import AbstractMLP
from mijax.nn._substitutes import FrozenNorm

Norm = LayerNorm | RMSNorm | OptionalNorm | Identity


class Block(AbstractBlock):
    """Attention, then an MLP that reads its output (GPT-2, Llama)."""

    linear_writes: ClassVar[bool] = True
    cache: ClassVar[Mapping[str, AbstractCached] | None] = AbstractAttention.cache
    masks_padding: ClassVar[bool] = True
    norm_readers: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"norm_1": "attention", "norm_2": "mlp"}
    )
    by_row: ClassVar[tuple[str, ...]] = ("mlp_in",)

    norm_1: Norm
    attention: AbstractAttention
    norm_2: Norm
    mlp: AbstractMLP

    def __call__(
        self, stream: AbstractStream, rows: AbstractRows, past: Past | None = None
    ) -> Any:
        """Computes the block; see `AbstractBlock`."""
        z = attend(self, stream, rows, past)
        stream = write_heads(self, stream.keep(rows), z).mark("resid_mid")
        mlp = self.mlp(
            stream.read("mlp_in", norm=scaled(self.norm_2, "mlp_norm_scale"))
        )
        return stream.add("mlp_out", mlp)


class ParallelBlock(AbstractBlock):
    """Attention and MLP side by side, both reading `resid_pre` (GPT-J, NeoX).

    There is no `resid_mid`.
    """

    linear_writes: ClassVar[bool] = True
    cache: ClassVar[Mapping[str, AbstractCached] | None] = AbstractAttention.cache
    masks_padding: ClassVar[bool] = True
    norm_readers: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"norm_1": "attention", "norm_2": "mlp"}
    )
    by_row: ClassVar[tuple[str, ...]] = ("mlp_in",)

    norm_1: Norm
    attention: AbstractAttention
    norm_2: Norm
    mlp: AbstractMLP

    def __call__(
        self, stream: AbstractStream, rows: AbstractRows, past: Past | None = None
    ) -> Any:
        """Computes the block; see `AbstractBlock`."""
        z = attend(self, stream, rows, past)
        stream = stream.keep(rows)
        mlp = self.mlp(
            stream.read("mlp_in", norm=scaled(self.norm_2, "mlp_norm_scale"))
        )
        return write_heads(self, stream, z).add("mlp_out", mlp)


class SandwichBlock(AbstractBlock):
    """Norms before and after attention and MLP (Gemma 2 and 3); or after them only.

    What attention and MLP write is normalized: `attn_out` and `mlp_out` are the values
    that are added to the residual stream, after `norm_2` and `norm_4`. In OLMo 2
    `norm_1` and `norm_3` are `Identity()`. The norm reads the sum over heads, so that
    attention writes as a whole: one upstream node of circuits.
    """

    cache: ClassVar[Mapping[str, AbstractCached] | None] = AbstractAttention.cache
    masks_padding: ClassVar[bool] = True
    norm_readers: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"norm_1": "attention", "norm_3": "mlp"}
    )
    by_row: ClassVar[tuple[str, ...]] = ("mlp_in",)

    norm_1: Norm
    attention: AbstractAttention
    norm_2: Norm
    norm_3: Norm
    mlp: AbstractMLP
    norm_4: Norm

    def __call__(
        self, stream: AbstractStream, rows: AbstractRows, past: Past | None = None
    ) -> Any:
        """Computes the block; see `AbstractBlock`."""
        z = attend(self, stream, rows, past)
        out = self.norm_2(heads_out(self.attention, z))
        stream = stream.keep(rows).add("attn_out", out).mark("resid_mid")
        norm = scaled(self.norm_3, "mlp_norm_scale")
        out = self.norm_4(self.mlp(stream.read("mlp_in", norm=norm)))
        return stream.add("mlp_out", out)


class PostNormBlock(AbstractBlock):
    """Attention, then an MLP, each followed by a norm of the stream (BERT).

    `attn_out` and `mlp_out` are what is added to the residual stream; `resid_mid` and
    `resid_post` are the stream after its norm, so that `mlp_in` equals `resid_mid`.
    Since the norm reads all that was written before, the block does not state
    `linear_writes`, and circuits of edges refuse it.

    Attributes:
        norm_1: norm of the stream after attention.
        attention: attention, which reads the stream as it is.
        norm_2: norm of the stream after the MLP.
        mlp: the MLP, which reads the stream as it is.
    """

    cache: ClassVar[Mapping[str, AbstractCached] | None] = AbstractAttention.cache
    masks_padding: ClassVar[bool] = True

    norm_1: Norm
    attention: AbstractAttention
    norm_2: Norm
    mlp: AbstractMLP

    def __call__(
        self, stream: AbstractStream, rows: AbstractRows, past: Past | None = None
    ) -> Any:
        """Computes the block; see `AbstractBlock`."""
        inputs = stream.read("q", "k", "v", heads=self.attention.heads)
        z = self.attention(inputs, rows, past)
        stream = write_heads(self, stream.keep(rows), z).normalize(self.norm_1)
        stream = stream.mark("resid_mid")
        mlp = self.mlp(stream.read("mlp_in"))
        return stream.add("mlp_out", mlp).normalize(self.norm_2)


class AttentionBlock(AbstractBlock):
    """Attention alone (Elhage et al. 2021). It has no MLP sites and no `resid_mid`."""

    linear_writes: ClassVar[bool] = True
    cache: ClassVar[Mapping[str, AbstractCached] | None] = AbstractAttention.cache
    masks_padding: ClassVar[bool] = True
    norm_readers: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"norm_1": "attention"}
    )

    norm_1: Norm
    attention: AbstractAttention

    def __call__(
        self, stream: AbstractStream, rows: AbstractRows, past: Past | None = None
    ) -> Any:
        """Computes the block; see `AbstractBlock`."""
        z = attend(self, stream, rows, past)
        return write_heads(self, stream.keep(rows), z)


def attend(block: Any, stream: Any, rows: AbstractRows, past: Past | None) -> Array:
    """Reads the stream for queries, keys and values, and mixes the values."""
    attention = block.attention
    norm = scaled(block.norm_1, "attn_norm_scale")
    inputs = stream.read("q", "k", "v", heads=attention.heads, norm=norm)
    return attention(inputs, rows, past)


def write_heads(block: Any, stream: Any, z: Array) -> Any:
    """Adds what every head writes."""
    attention = block.attention
    out = heads_out(attention, z)
    if edited("result"):
        return stream.add("attn_out", out)
    return stream.write("attn_out", z, attention.w_o, attention.b_o)


def heads_out(attention: Any, z: Array) -> Array:
    """Returns the output of attention, to which each head's part is a site."""
    each = jnp.einsum("nhd,hde->nhe", z, attention.w_o)
    result = site("result", each, "position head embed")
    out = attention.out(z)
    # Heads that an edit leaves as they are change nothing, bit for bit.
    return out + (result - each).sum(1) if edited("result") else out


def scaled(norm: Any, name: str) -> Any:
    """Returns a norm that marks the number it divides by."""
    known = isinstance(norm, LayerNorm | RMSNorm | FrozenNorm)
    return partial(norm, scale=name) if known else norm
