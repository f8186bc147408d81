"""Recurrent mixers, and the block with only a mixer."""

import abc
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import equinox as eqx
from jaxtyping import Array, Float

from mijax.core import AbstractBlock, AbstractCached, AbstractRows, Past, Recurrent
from mijax.nn._blocks import Norm, scaled

SCALES = "position head scale"


class AbstractMixer(eqx.Module):
    """A token mixer that remembers earlier tokens in a fixed-size state.

    Attributes:
        w_out: matrix from the mixer's output to the residual stream.
        b_out: its bias, or `None`.
        cache: values that a block with this mixer caches for earlier tokens.
        reads: weights that read the norm before the mixer, each with its bias.
        unrolled_sites: sites that `unrolled` reads.
    """

    w_out: eqx.AbstractVar[Float[Array, "*layer channel embed"]]
    b_out: eqx.AbstractVar[Float[Array, "*layer embed"] | None]

    cache: ClassVar[Mapping[str, AbstractCached]] = MappingProxyType(
        {"conv_window": Recurrent(), "mixer_state": Recurrent()}
    )
    reads: ClassVar[tuple[tuple[str, str | None], ...]]
    unrolled_sites: ClassVar[tuple[str, ...]]

    @abc.abstractmethod
    def __call__(
        self,
        x: Float[Array, "rows embed"],
        rows: AbstractRows,
        past: Past | None = None,
    ) -> Float[Array, "rows channel"]:
        """Mixes tokens.

        Args:
            x: the normalized residual stream.
            rows: position, prompt and lane of each row.
            past: the states before the first rows, for packed rows.

        Returns:
            The input of the output matrix.
        """

    @abc.abstractmethod
    def unrolled(
        self, acts: Mapping[str, Float[Array, "seq ..."]]
    ) -> Float[Array, "heads seq key_seq"]:
        """Return the weight with which each token reads each earlier one.

        Args:
            acts: activations of one prompt and layer at `unrolled_sites`.
        """


class MixerBlock(AbstractBlock):
    """A norm and a recurrent mixer: the Mamba block.

    The mixer reads `mlp_in` and writes `mlp_out`; the block has no attention sites.
    """

    linear_writes: ClassVar[bool] = True
    cache: ClassVar[Mapping[str, AbstractCached] | None] = AbstractMixer.cache
    norm_readers: ClassVar[Mapping[str, str]] = MappingProxyType({"norm": "mixer"})

    norm: Norm
    mixer: AbstractMixer

    def __call__(
        self, stream: Any, rows: AbstractRows, past: Past | None = None
    ) -> Any:
        """Computes the block; see `AbstractBlock`."""
        x = stream.read("mlp_in", norm=scaled(self.norm, "mlp_norm_scale"))
        out, mixer = self.mixer(x, rows, past), self.mixer
        return stream.write("mlp_out", out, mixer.w_out, mixer.b_out)
