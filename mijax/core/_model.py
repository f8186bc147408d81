"""The model that every method speaks to, and its forward pass."""

import abc
from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mijax._errors import ShapeError
from mijax.core._block import AbstractBlock, apply_block
from mijax.core._edits import compose, edit
from mijax.core._mark import site
from mijax.core._place import Place
from mijax.core._rows import AbstractRows, Past, Sequence
from mijax.core._sites import BlockSites, Sites

EMBED, VOCAB = "position embed", "position vocab"


class AbstractModel(eqx.Module):
    """What a method needs of a model.

    A model embeds tokens, applies its stacked blocks, normalises, and unembeds.
    Subclasses define these parts; the passes over them (this one, sweeps, generation)
    are written once, here and in the verbs.

    Attributes:
        blocks: blocks of equal shape, stacked: every array has a leading layer axis.
    """

    blocks: eqx.AbstractVar[AbstractBlock]

    @abc.abstractmethod
    def embed(
        self, tokens: Int[Array, " rows"], position: Int[Array, " rows"]
    ) -> Float[Array, "rows embed"]:
        """Returns the residual stream that enters the first block."""

    @abc.abstractmethod
    def normalise(self, x: Float[Array, "*rows embed"]) -> Float[Array, "*rows embed"]:
        """Applies the final norm."""

    @abc.abstractmethod
    def unembed(
        self,
        x: Float[Array, "*rows embed"],
        ids: Int[Array, "*rows k"] | None = None,
    ) -> Float[Array, "*rows vocab"]:
        """Returns logits of every token, or of the tokens `ids` of each row only."""

    def embeddings(
        self, tokens: Int[Array, " rows"], position: Int[Array, " rows"]
    ) -> dict[str, Float[Array, "rows embed"]]:
        """Returns the terms whose sum is `embed`, by name."""
        return {"input": self.embed(tokens, position)}

    @property
    def causal(self) -> bool:
        """True if a token depends on itself and the tokens before it only.

        One that is not takes padded prompts where its blocks state `masks_padding`.
        """
        return True

    @property
    def generates(self) -> bool:
        """True if a token after the prompt changes nothing before it.

        So a prompt can be continued with what the blocks cache of it. Every causal
        model can.
        """
        return self.causal

    @property
    def readout(self) -> Any:
        """The map from the last residual stream to outputs (`nn.Readout`), or `None`.

        Lenses and direct attribution refuse models that do not state it.
        """
        return None

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        leaves = jax.tree.leaves(self.blocks)
        return next(leaf.shape[0] for leaf in leaves if hasattr(leaf, "shape"))

    def __call__(
        self,
        tokens: Int[Array, " seq"],
        edits: Any = None,
        *,
        prompt: Int[Array, ""] | None = None,
        length: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "seq vocab"], Sites[Any]]:
        """Runs one example.

        Under `jit`, activations that the caller drops cost nothing.

        Args:
            tokens: token ids of one prompt.
            edits: placed edits, a list of them, or `None`.
            prompt: index of this prompt in its batch, for edits that hold one place or
                one source per prompt.
            length: number of tokens before padding, which a model that is not causal
                leaves out.

        Returns:
            Logits, and the activation at every site, block sites with a leading layer
            axis (`None` where the model has no such site).
        """
        if tokens.ndim != 1:
            raise ShapeError(
                f"A model takes one example, tokens [seq]; got shape {tokens.shape}. "
                "Use mijax.run or jax.vmap for a batch."
            )
        edits = compose(edits)
        position = jnp.arange(tokens.shape[0], dtype=jnp.int32)
        place = Place(Sequence(position, prompt, prompt, length))
        embed = edit(edits.embed, self.embed(tokens, position), place)
        embed = site("embed", embed, EMBED)
        x, (_, blocks) = scan_blocks(self, embed, edits.blocks, place.rows)
        final = edit(edits.resid_final, self.normalise(x), place)
        final = site("resid_final", final, EMBED)
        logits = edit(edits.logits, self.unembed(final), place)
        logits = site("logits", logits, VOCAB)
        return logits, Sites(embed, blocks, final, logits)


def scan_blocks(
    model: AbstractModel,
    x: Float[Array, "rows embed"],
    edits: BlockSites[Any],
    rows: AbstractRows,
    *,
    past: Past | None = None,
    kept: Any = None,
    last: Int[Array, ""] | None = None,
    want: Iterable[str] | None = None,
    select: Callable[[Any, BlockSites[Any], Array], Any] = lambda kept, acts, _: (
        kept,
        acts,
    ),
) -> tuple[Float[Array, "rows embed"], tuple[Any, Any]]:
    """Applies all blocks, one compiled body for every layer.

    Args:
        model: the model.
        x: the residual stream that enters the first block.
        edits: what to change; indices and operands of all layers.
        rows: where the rows stand.
        past: the blocks' cache of earlier tokens, by name, `[layer, prompt, ...]`.
        kept: what is carried from layer to layer for `select`.
        last: blocks after this layer are not computed, and their `out` is 0.
        want: block sites whose activations `select` is given; all by default.
        select: `(kept, acts, layer) -> (kept, out)`, what to keep of a block's
            activations. It runs inside the scan, so only what it returns takes memory.

    Returns:
        The residual stream after the last block, then `kept`, and every layer's `out`,
        stacked.
    """
    arrays, static = eqx.partition(model.blocks, eqx.is_array)
    scanned, shared = split_layered(edits)

    def body(carry: Any, layered: Any) -> tuple[Any, Any]:
        x, kept = carry
        layer, arrays, scanned, past = layered
        block = eqx.combine(arrays, static)
        edits = eqx.combine(scanned, shared)
        x, acts = apply_block(block, x, edits, Place(rows, layer), past, want=want)
        kept, out = select(kept, acts, layer)
        return (x, kept), out

    def needed(carry: Any, layered: Any) -> tuple[Any, Any]:
        out = jax.eval_shape(body, carry, layered)[1]
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), out)
        skip = lambda carry, _: (carry, nothing)  # noqa: E731
        return jax.lax.cond(layered[0] <= last, body, skip, carry, layered)

    layers = jnp.arange(model.n_layers, dtype=jnp.int32)
    carry = (x, kept)
    (x, kept), out = jax.lax.scan(
        body if last is None else needed, carry, (layers, arrays, scanned, past)
    )
    return x, (kept, out)


class Layered(eqx.Module):
    """An operand with one entry per layer, handed to each layer by the scan itself.

    Reading it so, and not by index, makes its gradient cost one layer per layer.
    """

    value: Float[Array, "layer ..."]


def split_layered(edits: Any) -> tuple[Any, Any]:
    """Splits edits into what the scan slices by layer and what all layers share."""
    is_layered = lambda node: isinstance(node, Layered)  # noqa: E731
    mask = jax.tree.map(
        lambda node: jax.tree.map(lambda _: is_layered(node), node),
        edits,
        is_leaf=is_layered,
    )
    return eqx.partition(edits, mask)
