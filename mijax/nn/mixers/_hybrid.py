"""A block with attention in some layers and a recurrent mixer in the others."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import jax
from jaxtyping import Array, Float, Int

from mijax.core import AbstractBlock, AbstractCached, AbstractRows, Past
from mijax.nn._attention import Attention
from mijax.nn._blocks import Norm, heads_out, scaled
from mijax.nn._mlp import AbstractMLP
from mijax.nn.mixers._mixer import AbstractMixer


class HybridBlock(AbstractBlock):
    """Attention or a recurrent mixer, then an MLP that reads its output (Qwen3-Next).

    Layers of both kinds form one stack: each layer has the weights of both kinds and
    uses one. The unused weights are 0 but take memory: 2% of all weights in Qwen3-Next
    80B. In each layer, sites of the unused kind are 0, and edits there have no effect;
    both kinds write `attn_out`.

    In circuits, each kind is one upstream node, since it reads the stream under one
    name.

    Attributes:
        attends: 1 in layers with attention, 0 in layers with a mixer.
    """

    cache: ClassVar[Mapping[str, AbstractCached] | None] = MappingProxyType(
        {**Attention.cache, **AbstractMixer.cache}
    )
    by_row: ClassVar[tuple[str, ...]] = ("mlp_in",)

    norm_1: Norm
    attention: Attention
    mixer: AbstractMixer
    norm_2: Norm
    mlp: AbstractMLP
    attends: Int[Array, "*layer"]

    def __call__(
        self, stream: Any, rows: AbstractRows, past: Past | None = None
    ) -> Any:
        """Computes the block; see `AbstractBlock`."""

        def attend(x: Float[Array, "rows embed"]) -> Float[Array, "kept embed"]:
            return heads_out(self.attention, self.attention(x, rows, past))

        def mix(x: Float[Array, "rows embed"]) -> Float[Array, "kept embed"]:
            return rows.keep(self.mixer(x, rows, past) @ self.mixer.w_out)

        x = stream.read("attn_in", norm=scaled(self.norm_1, "attn_norm_scale"))
        out = jax.lax.cond(self.attends > 0, attend, mix, x)
        stream = stream.keep(rows).add("attn_out", out).mark("resid_mid")
        norm = scaled(self.norm_2, "mlp_norm_scale")
        return stream.add("mlp_out", self.mlp(stream.read("mlp_in", norm=norm)))
