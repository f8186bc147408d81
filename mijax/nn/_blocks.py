"""Residual blocks."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from jaxtyping import Array, Float

from mijax.core import AbstractBlock, AbstractStream, BlockSites, Past, Place, edit
from mijax.nn._attention import Attention
from mijax.nn._basic import Identity, LayerNorm, RMSNorm
from mijax.nn._mlp import AbstractMLP

Norm = LayerNorm | RMSNorm | Identity
NO_MLP = {"mlp_in": None, "mlp_pre": None, "mlp_post": None, "mlp_out": None}


class Block(AbstractBlock):
    """Attention, then an MLP that reads its output (GPT-2, Llama)."""

    linear_writes: ClassVar[bool] = True
    norm_readers: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"norm_1": "attention", "norm_2": "mlp"}
    )

    norm_1: Norm
    attention: Attention
    norm_2: Norm
    mlp: AbstractMLP

    def __call__(
        self,
        x: Float[Array, "rows embed"],
        edits: BlockSites[Any],
        place: Place,
        past: Past | None = None,
    ) -> tuple[Float[Array, "kept embed"], BlockSites[Any]]:
        """Computes the block; see `AbstractBlock`."""
        pre = edit(edits.resid_pre, x, place)
        attn_out, attn = self.attention(self.norm_1(pre), edits, place, past)
        kept, after = place.rows.keep(pre), place.after
        mid = edit(edits.resid_mid, kept + attn_out, after)
        mlp_out, mlp = self.mlp(self.norm_2(mid), edits, after)
        post = edit(edits.resid_post, mid + mlp_out, after)
        return post, BlockSites(
            resid_pre=pre, resid_mid=mid, resid_post=post, **attn, **mlp
        )

    def connect(
        self, stream: AbstractStream, edits: BlockSites[Any], place: Place
    ) -> AbstractStream:
        """See `AbstractBlock`: the MLP reads what the heads write."""
        inputs = tuple(self.norm_1(x) for x in stream.read_heads())
        stream = stream.write_heads(*self.attention.heads(inputs, edits, place))
        out, _ = self.mlp(self.norm_2(stream.read_mlp()), edits, place)
        return stream.write_mlp(out)


class ParallelBlock(AbstractBlock):
    """Attention and MLP side by side, both reading `resid_pre` (GPT-J, NeoX).

    There is no `resid_mid`.
    """

    linear_writes: ClassVar[bool] = True
    norm_readers: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"norm_1": "attention", "norm_2": "mlp"}
    )

    norm_1: Norm
    attention: Attention
    norm_2: Norm
    mlp: AbstractMLP

    def __call__(
        self,
        x: Float[Array, "rows embed"],
        edits: BlockSites[Any],
        place: Place,
        past: Past | None = None,
    ) -> tuple[Float[Array, "kept embed"], BlockSites[Any]]:
        """Computes the block; see `AbstractBlock`."""
        pre = edit(edits.resid_pre, x, place)
        attn_out, attn = self.attention(self.norm_1(pre), edits, place, past)
        kept, after = place.rows.keep(pre), place.after
        mlp_out, mlp = self.mlp(self.norm_2(kept), edits, after)
        post = edit(edits.resid_post, kept + attn_out + mlp_out, after)
        return post, BlockSites(
            resid_pre=pre, resid_mid=None, resid_post=post, **attn, **mlp
        )

    def connect(
        self, stream: AbstractStream, edits: BlockSites[Any], place: Place
    ) -> AbstractStream:
        """See `AbstractBlock`: heads and MLP read the same stream."""
        inputs = tuple(self.norm_1(x) for x in stream.read_heads())
        out, _ = self.mlp(self.norm_2(stream.read_mlp()), edits, place)
        stream = stream.write_heads(*self.attention.heads(inputs, edits, place))
        return stream.write_mlp(out)


class AttentionBlock(AbstractBlock):
    """Attention alone (Elhage et al. 2021). It has no MLP sites and no `resid_mid`."""

    linear_writes: ClassVar[bool] = True
    norm_readers: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"norm_1": "attention"}
    )

    norm_1: Norm
    attention: Attention

    def __call__(
        self,
        x: Float[Array, "rows embed"],
        edits: BlockSites[Any],
        place: Place,
        past: Past | None = None,
    ) -> tuple[Float[Array, "kept embed"], BlockSites[Any]]:
        """Computes the block; see `AbstractBlock`."""
        pre = edit(edits.resid_pre, x, place)
        attn_out, attn = self.attention(self.norm_1(pre), edits, place, past)
        kept, after = place.rows.keep(pre), place.after
        post = edit(edits.resid_post, kept + attn_out, after)
        return post, BlockSites(
            resid_pre=pre, resid_mid=None, resid_post=post, **attn, **NO_MLP
        )

    def connect(
        self, stream: AbstractStream, edits: BlockSites[Any], place: Place
    ) -> AbstractStream:
        """See `AbstractBlock`: there are heads only."""
        inputs = tuple(self.norm_1(x) for x in stream.read_heads())
        return stream.write_heads(*self.attention.heads(inputs, edits, place))
