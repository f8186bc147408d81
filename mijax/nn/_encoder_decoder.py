"""Encoder-decoders: a decoder that attends to an encoder's output."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mijax._errors import ShapeError
from mijax.core import AbstractBlock, AbstractStream, prefixed, site
from mijax.core.internal import (
    PromptsLike,
    Sequence,
    as_tokens,
    run_block,
)
from mijax.nn._blocks import Norm
from mijax.nn._tower_stream import TowerStream
from mijax.nn._transformer import Transformer

TOWER = "encoder."
EMBED = "position embed"


class Stack(eqx.Module):
    """Stacked blocks and the norm after them.

    Attributes:
        blocks: stacked blocks; every array has a leading layer axis.
        norm: the final norm.
    """

    blocks: AbstractBlock
    norm: Norm

    def __call__(
        self, x: Float[Array, "position embed"], rows: Sequence
    ) -> Float[Array, "position embed"]:
        """Run the blocks; marks the sites of an encoder, from `embed` on."""
        arrays, static = eqx.partition(self.blocks, eqx.is_array)

        def step(x: Array, layer: Any) -> tuple[Array, None]:
            return run_block(eqx.combine(layer, static), x, rows), None

        x, _ = jax.lax.scan(step, site("embed", x, EMBED), arrays)
        return site("resid_final", self.norm(x), EMBED)


class AbstractEncoderDecoder(eqx.Module):
    """An encoder for a source, and a decoder that reads it and writes a target.

    `model(inputs)` returns the logits for one example at every target position. Encoder
    sites begin with `encoder.` and cross-attention sites with `cross.`; decoder sites
    have their usual names. `mijax.model(model, model.example)` is the model for `run`,
    `capture`, `gradients` and `sweep`. `on_source` returns the decoder for given
    sources, for `generate` and for every method that takes a decoder.

    Attributes:
        encoder: blocks and final norm of the encoder.
        decoder: the decoder; its blocks are `CrossBlock`s without a memory.
        start: tokens that every target begins with.
    """

    encoder: eqx.AbstractVar[Stack]
    decoder: eqx.AbstractVar[Transformer]
    start: eqx.AbstractVar[tuple[int, ...]]

    @property
    @abc.abstractmethod
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of one input."""

    @abc.abstractmethod
    def embed_source(self, inputs: Any) -> Float[Array, "source embed"]:
        """Return the residual stream that enters the first block of the encoder."""

    @abc.abstractmethod
    def sources(self, source: Any) -> dict[str, Array]:
        """Return one source or a batch as arrays, the part of `inputs` without target.

        Raises:
            ShapeError: something else.
        """

    def inputs(self, source: Any, target: Any) -> dict[str, Array]:
        """Return one example or a batch, in the form for the model and the verbs.

        Args:
            source: input of the encoder.
            target: token ids that the decoder reads, `[seq]`, or `[batch, seq]` padded
                on the right, or `mijax.data.Prompts`; they begin with `start`.

        Returns:
            The arrays, by name.

        Raises:
            ShapeError: anything else, or different numbers of sources and targets.
        """
        found = self.sources(source) | {"target": as_tokens(target)}
        batches = {
            leaf.shape[: leaf.ndim - len(self.example[name].shape)]
            for name, leaf in found.items()
        }
        if len(batches) > 1:
            raise ShapeError(
                f"Got sources of shape {found['source'].shape} and targets of shape "
                f"{found['target'].shape}: give one target for each source."
            )
        return found

    def __call__(self, inputs: Any) -> Float[Array, "target vocab"]:
        """Return the logits of one example.

        Args:
            inputs: as `inputs` returns them, without an axis for the batch.
        """
        return self._reading(inputs)(inputs["target"])[0]

    def encode(self, inputs: Any) -> Float[Array, "source embed"]:
        """Return the residual stream after the final norm of the encoder.

        Args:
            inputs: one source, as `sources` returns it.
        """
        x = prefixed(TOWER, self.embed_source)(inputs)
        return prefixed(TOWER, self.encoder)(x, _rows(x, inputs))

    def on_source(self, source: Any) -> tuple[Transformer, Int[Array, "*batch start"]]:
        """Return the decoder for given sources, and the tokens that targets begin with.

        Args:
            source: one source, which all prompts read, or a batch, in which the
                decoder's prompt `i` reads source `i`.

        Returns:
            A decoder that every verb takes, and `start`, once for each source.
        """
        arrays = self.sources(source)
        lone = arrays["source"].ndim == len(self.example["source"].shape)
        decoder = _on_sources(self, arrays, lone)
        start = jnp.asarray(self.start, jnp.int32)
        count = arrays["source"].shape[0]
        return decoder, start if lone else jnp.tile(start, (count, 1))

    def on_streams(
        self, inputs: Any, open: Callable[..., AbstractStream]
    ) -> Float[Array, "target vocab"]:
        """Run with streams, for `circuits.StreamModel(model.on_streams, example)`.

        Every head and MLP in both towers is a node, and nodes that read the encoder's
        memory have edges from the encoder's nodes.

        Args:
            inputs: one example.
            open: opens a stream as the sum of terms.

        Returns:
            The logits.
        """
        x = self.embed_source(inputs)
        rows = _rows(x, inputs)
        stream: Any = TowerStream(open("encoder", source=x), TOWER)
        for block in _layers(self.encoder.blocks):
            stream = block(stream, rows)
        memory, real = stream.stream, rows.real_keys()
        tokens = inputs["target"]
        position = jnp.arange(tokens.shape[0], dtype=jnp.int32)
        target = self.decoder.embed(tokens, position)
        stream = open("decoder", target=target)
        for block in _layers(self.decoder.blocks):
            names, cross = ("cross.k", "cross.v"), block.cross
            seen = memory.read(*names, heads=cross.heads, norm=self.encoder.norm)
            mask = None if real is None else real[0, 0]
            own = dataclasses.replace(block, memory=cross.remember(*seen, mask))
            stream = own(stream, Sequence(position))
        final = stream.read("logits", norm=self.decoder.norm)
        return self.decoder.unembed(final)

    @property
    def n_layers(self) -> int:
        """Number of blocks of the decoder."""
        return self.decoder.n_layers

    @property
    def vocab(self) -> int:
        """Number of tokens that the decoder reads."""
        return self.decoder.vocab

    @property
    def frame(self) -> tuple[str, ...]:
        """Weight processing that was applied to the decoder, in order."""
        return self.decoder.frame

    def _reading(self, inputs: Any) -> Transformer:
        """Return the decoder with the memory of one source."""
        x = self.encode(inputs)
        real = _rows(x, inputs).real_keys()
        mask = None if real is None else real[0, 0]
        blocks: Any = self.decoder.blocks
        memory = eqx.filter_vmap(lambda cross: cross.remember(x, x, mask))(blocks.cross)
        return dataclasses.replace(
            self.decoder, blocks=dataclasses.replace(blocks, memory=memory)
        )


@eqx.filter_jit
def _on_sources(
    model: AbstractEncoderDecoder, sources: dict[str, Array], lone: bool
) -> Transformer:
    """Return the decoder with the memory of every source."""

    def read(one: dict[str, Array]) -> Any:
        blocks: Any = model._reading(one).blocks
        return blocks.memory

    if lone:
        memory = read(sources)
    else:
        # Of each source, with an axis for its one prompt: `[batch, layer, 1, ...]`.
        found = jax.vmap(read)(sources)
        memory = jax.tree.map(lambda a: jnp.swapaxes(a[:, :, 0], 0, 1), found)
    blocks = dataclasses.replace(model.decoder.blocks, memory=memory)
    return dataclasses.replace(model.decoder, blocks=blocks)


def _rows(x: Float[Array, "source embed"], inputs: Any) -> Sequence:
    """Return the positions of a source, of which some may be padding."""
    position = jnp.arange(x.shape[0], dtype=jnp.int32)
    return Sequence(position, length=inputs.get("length"))


def _layers(blocks: Any) -> list[Any]:
    """Return stacked blocks one by one."""
    arrays, static = eqx.partition(blocks, eqx.is_array)
    count = jax.tree.leaves(arrays)[0].shape[0]
    each = (jax.tree.map(lambda a, i=i: a[i], arrays) for i in range(count))
    return [eqx.combine(one, static) for one in each]


@final
class TextToText(AbstractEncoderDecoder):
    """An encoder-decoder for token ids with one embedding table for both towers (T5).

    `inputs(source, target)` takes token ids or `mijax.data.Prompts`; padding of the
    source is masked.

    Attributes:
        encoder: blocks and final norm of the encoder.
        decoder: the decoder.
        start: tokens that every target begins with.

    Examples:
        >>> import jax, mijax
        >>> spec = mijax.models.T5Spec(
        ...     layers=2, embed=16, heads=2, head_dim=8, mlp=24, vocab=64
        ... )
        >>> t5 = mijax.models.init(spec, jax.random.key(0))
        >>> model, inputs = mijax.model(t5, t5.example), t5.inputs([5, 6, 1], [0, 7])
        >>> mijax.run(model, inputs, mijax.Zero().at("cross.z", layer=1)).shape
        (2, 64)
        >>> decoder, start = t5.on_source([5, 6, 1])
        >>> mijax.generate(decoder, start, steps=4).shape
        (4,)
    """

    encoder: Stack
    decoder: Transformer
    start: tuple[int, ...] = eqx.field(static=True)

    @property
    def example(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of one input: tokens of the source, their number, the target."""
        shapes = {"source": (2,), "length": (), "target": (2,)}
        return {n: jax.ShapeDtypeStruct(s, jnp.int32) for n, s in shapes.items()}

    def embed_source(self, inputs: Any) -> Float[Array, "source embed"]:
        """Return the embeddings of the tokens of a source."""
        return self.decoder.embedding(inputs["source"])

    def sources(self, source: Any) -> dict[str, Array]:
        """Return tokens and lengths of one source or a batch.

        Args:
            source: token ids `[seq]` or `[batch, seq]`, or `mijax.data.Prompts`.

        Raises:
            ShapeError: something else.
        """
        tokens = as_tokens(source)
        if isinstance(source, PromptsLike):
            length = jnp.asarray(source.lengths, jnp.int32)
            length = length.reshape(tokens.shape[:-1])
        else:
            length = jnp.full(tokens.shape[:-1], tokens.shape[-1], jnp.int32)
        return {"source": tokens, "length": length}
