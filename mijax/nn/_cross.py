"""Cross-attention: decoder tokens attend to the encoder's output."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mijax._errors import ShapeError
from mijax.core import (
    AbstractBlock,
    AbstractCached,
    AbstractRows,
    AbstractStream,
    Fixed,
    Past,
    prefixed,
    site,
)
from mijax.core.internal import HEADS, edited
from mijax.nn._attention import Attention, add, pattern_of, project
from mijax.nn._basic import Product, Softmax
from mijax.nn._blocks import Norm, attend, heads_out, scaled, write_heads
from mijax.nn._mlp import AbstractMLP

TOWER = "cross."
SOURCE = "key_position head head_dim"


class Memory(eqx.Module):
    """Keys and values for every source, read by a decoder.

    Attributes:
        k: keys, the site `cross.k`.
        v: values, the site `cross.v`.
        real: true at source positions that are not padding; `None` for all.
    """

    k: Float[Array, "*layer prompt source heads head_dim"]
    v: Float[Array, "*layer prompt source heads head_dim"]
    real: Bool[Array, "*layer prompt source"] | None = None


class CrossAttention(eqx.Module):
    """Multi-head attention of a decoder's tokens to the positions of a source.

    Its sites are those of `Attention` with the prefix `cross.`: `cross.q`, `cross.k`,
    `cross.v`, `cross.scores`, `cross.pattern`, `cross.z`. Biases are `None` if the
    model has none.

    Attributes:
        scale: factor for the scores; `head_dim**-0.5` by default.
    """

    w_q: Float[Array, "*layer embed heads head_dim"]
    w_k: Float[Array, "*layer embed heads head_dim"]
    w_v: Float[Array, "*layer embed heads head_dim"]
    w_o: Float[Array, "*layer heads head_dim embed"]
    b_q: Float[Array, "*layer heads head_dim"] | None = None
    b_k: Float[Array, "*layer heads head_dim"] | None = None
    b_v: Float[Array, "*layer heads head_dim"] | None = None
    b_o: Float[Array, "*layer embed"] | None = None
    softmax: Softmax = Softmax()
    product: Product = Product()
    scale: float | None = eqx.field(static=True, default=None)

    def remember(
        self,
        for_k: Float[Array, "source *heads embed"],
        for_v: Float[Array, "source *heads embed"],
        real: Bool[Array, " source"] | None = None,
    ) -> Memory:
        """Return the memory for one source in one layer.

        Args:
            for_k: encoder output for the keys; one input for all heads, or one for
                each.
            for_v: encoder output for the values, in the same form.
            real: true at positions that are not padding; all by default.

        Returns:
            The memory.
        """
        k = project(for_k, self.w_k, self.b_k)[None]
        v = project(for_v, self.w_v, self.b_v)[None]
        return Memory(k, v, None if real is None else real[None])

    def __call__(
        self,
        x: Float[Array, "rows *heads embed"],
        memory: Memory,
        rows: AbstractRows,
        past: Past | None = None,
    ) -> Float[Array, "rows heads head_dim"]:
        """Mixes the values of the source.

        Args:
            x: the normalized stream, at the rows that leave the block; one input for
                all heads, or one for each.
            memory: keys and values of the sources, one for each prompt.
            rows: position, prompt and lane of each row that enters the block.
            past: keys and values of each prompt, where they are computed.

        Returns:
            The site `cross.z`: the values that each head reads from the source.
        """
        asking, own = rows.after, rows.of_prompt
        q = site("cross.q", project(x, self.w_q, self.b_q), HEADS)
        k = rows.fixed("cross.k", lambda: own(memory.k), past, axes=SOURCE)
        v = rows.fixed("cross.v", lambda: own(memory.v), past, axes=SOURCE)
        real = None if memory.real is None else own(memory.real)[..., None, None, :]
        divisor = q.shape[-1] ** 0.5 if self.scale is None else 1 / self.scale
        queries = asking.queries(q)
        scores = self.product("...qhd,...khd->...hqk", queries, k) / divisor
        mixed = prefixed(TOWER, pattern_of)
        pattern = mixed(self.softmax, scores, asking, real=real)
        z = self.product("...hqk,...khd->...qhd", pattern, v)
        return site("cross.z", asking.flat(z), HEADS)

    def out(self, z: Float[Array, "rows heads head_dim"]) -> Float[Array, "rows embed"]:
        """Return the outputs of all heads, and the bias."""
        return add(jnp.einsum("nhd,hde->ne", z, self.w_o), self.b_o)

    @property
    def heads(self) -> int:
        """Number of heads."""
        return self.w_q.shape[-2]


class CrossBlock(AbstractBlock):
    """Attention, cross-attention to a memory, then an MLP (decoder of T5, Whisper).

    `resid_mid` is the stream between attention and cross-attention, `cross.resid_mid`
    the stream that the MLP reads. Generation and sweeps reuse the keys and values in
    the memory instead of recomputing them for new tokens.

    Attributes:
        norm_1: norm that attention reads.
        attention: attention to the tokens of the decoder.
        norm_2: norm that cross-attention reads.
        cross: attention to the source.
        norm_3: norm that the MLP reads.
        mlp: the MLP.
        memory: keys and values from an encoder; `None` before a source is given.
    """

    cache: ClassVar[Mapping[str, AbstractCached] | None] = MappingProxyType(
        {**Attention.cache, "cross.k": Fixed(), "cross.v": Fixed()}
    )
    by_row: ClassVar[tuple[str, ...]] = ("mlp_in",)

    norm_1: Norm
    attention: Attention
    norm_2: Norm
    cross: CrossAttention
    norm_3: Norm
    mlp: AbstractMLP
    memory: Memory | None = None

    @property
    def prompts(self) -> int | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number of sources in the memory; one source serves any number of prompts."""
        sources = 1 if self.memory is None else self.memory.k.shape[-4]
        return None if sources == 1 else sources

    def __call__(
        self, stream: AbstractStream, rows: AbstractRows, past: Past | None = None
    ) -> Any:
        """Computes the block; see `AbstractBlock`.

        Raises:
            ShapeError: no memory.
        """
        if self.memory is None:
            raise ShapeError(
                "This decoder attends to an encoder's output and has no source: use "
                "model.on_source(source)."
            )
        z = attend(self, stream, rows, past)
        stream = write_heads(self, stream.keep(rows), z).mark("resid_mid")
        norm = scaled(self.norm_2, "cross.attn_norm_scale")
        x = stream.read("cross.q", heads=self.cross.heads, norm=norm)
        z = self.cross(x, self.memory, rows, past)
        stream = self._write_cross(stream, z).mark("cross.resid_mid")
        norm = scaled(self.norm_3, "mlp_norm_scale")
        return stream.add("mlp_out", self.mlp(stream.read("mlp_in", norm=norm)))

    def _write_cross(self, stream: AbstractStream, z: Array) -> AbstractStream:
        """Add the output of every cross-attention head."""
        out = prefixed(TOWER, heads_out)(self.cross, z)
        if edited("cross.result"):
            return stream.add("cross.attn_out", out)
        return stream.write("cross.attn_out", z, self.cross.w_o, self.cross.b_o)
