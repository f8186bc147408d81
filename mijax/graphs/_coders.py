"""Transcoders for all layers as one value, which replace the MLPs in a graph."""

import abc
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mijax._errors import ConfigError, ShapeError, SiteError
from mijax.dictionaries import CrossLayer, Dictionary, Stored, Transcoder


class AbstractCoders(eqx.Module):
    """Transcoders for every layer, with features indexed per layer."""

    @abc.abstractmethod
    def encode(
        self, reads: Float[Array, "layer seq embed"]
    ) -> Float[Array, "layer seq feature"]:
        """Return the activation of every feature."""

    @abc.abstractmethod
    def decode(
        self,
        latents: Float[Array, "layer seq feature"],
        reads: Float[Array, "layer seq embed"],
    ) -> Float[Array, "layer seq embed"]:
        """Return the reconstruction of the MLP outputs."""

    @abc.abstractmethod
    def readers(
        self, layer: Int[Array, " n"], feature: Int[Array, " n"]
    ) -> Float[Array, "n embed"]:
        """Return the encoder direction of each feature, including the input scale."""

    @abc.abstractmethod
    def writers(
        self, layer: Int[Array, " n"], feature: Int[Array, " n"]
    ) -> Float[Array, "n written embed"]:
        """Return the decoder output of each feature at activation 1.

        The axis `written` has only the feature's own layer, or every layer, with zeros
        before it.
        """

    @abc.abstractmethod
    def biases(
        self, layer: Int[Array, " n"], feature: Int[Array, " n"]
    ) -> Float[Array, " n"]:
        """Return the encoder bias of each feature."""

    @property
    @abc.abstractmethod
    def skip(self) -> Float[Array, "layer in out"] | None:
        """Linear skip connection from input to output, or `None`."""


class PerLayer(AbstractCoders):
    """One transcoder per layer, stacked; zeros at layers without one."""

    dictionary: Dictionary

    def encode(
        self, reads: Float[Array, "layer seq embed"]
    ) -> Float[Array, "layer seq feature"]:
        """Return the activation of every feature."""
        return jax.vmap(lambda one, x: one.encode(x))(self.dictionary, reads)

    def decode(
        self,
        latents: Float[Array, "layer seq feature"],
        reads: Float[Array, "layer seq embed"],
    ) -> Float[Array, "layer seq embed"]:
        """Return the reconstruction of the MLP outputs."""
        each = jax.vmap(lambda one, z, x: one.decode(z, x))
        return each(self.dictionary, latents, reads)

    def readers(
        self, layer: Int[Array, " n"], feature: Int[Array, " n"]
    ) -> Float[Array, "n embed"]:
        """Return the direction that each feature reads."""
        encoder, scale = self.dictionary.weights.encoder, self.dictionary.scale
        return encoder[layer, feature] * scale[layer, None]

    def writers(
        self, layer: Int[Array, " n"], feature: Int[Array, " n"]
    ) -> Float[Array, "n written embed"]:
        """Return the decoder output of each feature in its layer."""
        decoder, scale = self.dictionary.weights.decoder, self.dictionary.scale
        # Layers without a transcoder are zeros, including their scale.
        size = jnp.where(scale == 0, 1.0, scale)[layer, None]
        return (decoder[layer, feature] / size)[:, None]

    def biases(
        self, layer: Int[Array, " n"], feature: Int[Array, " n"]
    ) -> Float[Array, " n"]:
        """Return the encoder bias of each feature."""
        return self.dictionary.weights.bias[layer, feature]

    @property
    def skip(self) -> Float[Array, "layer in out"] | None:
        """Linear skip connection of skip transcoders."""
        return self.dictionary.weights.skip


class AcrossLayers(AbstractCoders):
    """A cross-layer transcoder: each feature reads one layer and writes later ones."""

    dictionary: Dictionary

    @property
    def layers(self) -> int:
        """Number of layers."""
        return self.dictionary.wiring.reads[0]

    def encode(
        self, reads: Float[Array, "layer seq embed"]
    ) -> Float[Array, "layer seq feature"]:
        """Return the activation of every feature."""
        # Latent `i` of the dictionary reads layer `i % layers`.
        found = self.dictionary.encode(reads.swapaxes(0, 1))
        return found.reshape(len(found), -1, self.layers).transpose(2, 0, 1)

    def decode(
        self,
        latents: Float[Array, "layer seq feature"],
        reads: Float[Array, "layer seq embed"],
    ) -> Float[Array, "layer seq embed"]:
        """Return the reconstruction of the MLP outputs."""
        flat = latents.transpose(1, 2, 0).reshape(latents.shape[1], -1)
        return self.dictionary.decode(flat).swapaxes(0, 1)

    def _index(self, layer: Array, feature: Array) -> Array:
        return feature * self.layers + layer

    def readers(
        self, layer: Int[Array, " n"], feature: Int[Array, " n"]
    ) -> Float[Array, "n embed"]:
        """Return the direction that each feature reads."""
        rows = self.dictionary.weights.encoder[self._index(layer, feature)]
        scale = jnp.broadcast_to(self.dictionary.scale, self.layers)
        return rows * scale[layer, None]

    def writers(
        self, layer: Int[Array, " n"], feature: Int[Array, " n"]
    ) -> Float[Array, "n written embed"]:
        """Return the decoder output of each feature in every layer."""
        rows = self.dictionary.weights.decoder[self._index(layer, feature)]
        rows = rows.reshape(len(rows), self.layers, -1)
        later = jnp.arange(self.layers) >= layer[:, None]
        scale = jnp.broadcast_to(self.dictionary.scale, self.layers)
        return rows * (later / scale)[..., None]

    def biases(
        self, layer: Int[Array, " n"], feature: Int[Array, " n"]
    ) -> Float[Array, " n"]:
        """Return the encoder bias of each feature."""
        return self.dictionary.weights.bias[self._index(layer, feature)]

    @property
    def skip(self) -> None:
        """`None`: a cross-layer transcoder has no skip connection."""
        return


def coders_of(
    transcoders: Mapping[int, Dictionary | Stored] | Dictionary | Stored, layers: int
) -> AbstractCoders:
    """Return the transcoders for all layers as one value.

    Raises:
        ConfigError: a dictionary normalizes its input activations.
        ShapeError: dictionaries that are not transcoders, or whose shapes differ.
        SiteError: a layer that the model does not have, or no layers.
    """
    if not isinstance(transcoders, Mapping):
        one = _opened(transcoders)
        kind = one.wiring
        if not isinstance(kind, CrossLayer) or kind.layers != layers:
            raise ShapeError(
                f"Expected a CrossLayer dictionary over {layers} layers or a mapping "
                f"from layers to transcoders, got {kind!r}."
            )
        return AcrossLayers(one)
    unknown = sorted(i for i in transcoders if i not in range(layers))
    if unknown or not transcoders:
        raise SiteError(
            f"Expected transcoders for layers 0 to {layers - 1}, got "
            f"{unknown or 'none'}."
        )
    each = {layer: _opened(one) for layer, one in transcoders.items()}
    first = next(iter(each.values()))
    for layer, one in each.items():
        same = jax.tree.structure(one) == jax.tree.structure(first)
        same = same and _shapes(one) == _shapes(first)
        if not isinstance(one.wiring, Transcoder) or not same:
            raise ShapeError(
                "Expected Transcoders of the same shape for every layer, got "
                f"{one.wiring!r} with {one.latents} latents at layer {layer}."
            )
    none = jax.tree.map(jnp.zeros_like, first)
    rows = [each.get(i, none) for i in range(layers)]
    return PerLayer(jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows))


def _shapes(one: Dictionary) -> list[tuple[int, ...]]:
    return [jnp.shape(leaf) for leaf in jax.tree.leaves(one)]


def _opened(one: Any) -> Dictionary:
    """Return the dictionary, loaded from a file if needed."""
    if isinstance(one, Stored):
        if one.normalisation != "none":
            raise ConfigError(
                "An attribution graph needs dictionaries that read raw activations; "
                f"this one normalizes them with {one.normalisation!r}."
            )
        one = one.dictionary
    if not isinstance(one, Dictionary):
        raise ShapeError(f"Expected a Dictionary, got {type(one).__name__}.")
    return one
