"""Models that keep their edits: every method then starts from the edited model."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mijax._errors import SiteError
from mijax.core._block import AbstractBlock, changes_of, stated, states_of
from mijax.core._edits import compose, edit
from mijax.core._harvest import harvest
from mijax.core._held import held
from mijax.core._model import AbstractModel
from mijax.core._place import Place
from mijax.core._rows import AbstractRows, Past
from mijax.core._sites import BLOCK_SITES, BlockSites, Sites, filled
from mijax.core._stream import AbstractStream, PlainStream

# The stream enters and leaves the first and last lines of a block under these names.
ENTRY, EXIT = "resid_pre", "resid_post"


class EditedBlock(AbstractBlock):
    """A block with edits at its sites.

    Attributes:
        block: the block.
        edits: edits at sites of the block; all layers hold the same.
        layer: its layer.
    """

    block: AbstractBlock
    edits: BlockSites[Any]
    layer: Int[Array, "*layer"]

    @property
    def cache(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """What generation and sweeps keep of earlier tokens, as the block states it."""
        return stated(self.block, "cache")

    @property
    def masks_padding(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """True if no token of the block reads padding, as the block states it."""
        return stated(self.block, "masks_padding")

    @property
    def prompts(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number of prompts that the block holds something for, as it states it."""
        return stated(self.block, "prompts")

    def __call__(
        self, stream: AbstractStream, rows: AbstractRows, past: Past | None = None
    ) -> Any:
        """Compute the block with its edits."""
        place = Place(rows, self.layer)
        inside = {name: getattr(self.edits, name) for name in BLOCK_SITES}
        after = inside.pop(EXIT)
        changes = changes_of(inside, lambda at: place, states_of(self.block))
        run = harvest(_call, want=(), edits=changes)
        stream = run(self.block, stream, rows, past)[0]
        if after is None:
            return stream
        if not isinstance(stream, PlainStream):
            raise SiteError(
                f"Edits of the model at {EXIT!r} are not written by any node of a "
                "graph: edit what nodes write, attn_out, mlp_out or z."
            )
        every = stream.x.shape[0] == rows.position.shape[0]
        return PlainStream(edit(after, stream.x, place if every else place.after))


def _call(block: Any, stream: Any, rows: Any, past: Any) -> Any:
    return block(stream, rows, past)


class EditedModel(AbstractModel):
    """A decoder that keeps its edits; see `edited`.

    Attributes:
        model: the model.
        edits: its edits.
        blocks: its blocks with edits.
    """

    model: AbstractModel
    edits: Sites[Any]
    blocks: AbstractBlock

    def embed(
        self, tokens: Int[Array, " rows"], position: Int[Array, " rows"]
    ) -> Float[Array, "rows embed"]:
        """Return the residual stream that enters the first block."""
        return self.model.embed(tokens, position)

    def embeddings(
        self, tokens: Int[Array, " rows"], position: Int[Array, " rows"]
    ) -> dict[str, Float[Array, "rows embed"]]:
        """Return the terms whose sum is `embed`, by name."""
        return self.model.embeddings(tokens, position)

    def normalise(self, x: Float[Array, "*rows embed"]) -> Float[Array, "*rows embed"]:
        """Apply the final norm."""
        return self.model.normalise(x)

    def unembed(
        self,
        x: Float[Array, "*rows embed"],
        ids: Int[Array, "*rows k"] | None = None,
    ) -> Float[Array, "*rows vocab"]:
        """Return logits of every token, or of the tokens `ids` of each row only."""
        return self.model.unembed(x, ids)

    @property
    def causal(self) -> bool:
        """True if the model is causal."""
        return self.model.causal

    @property
    def generates(self) -> bool:
        """True if a prompt of the model can be continued."""
        return self.model.generates

    @property
    def vocab(self) -> Any:
        """Number of tokens that the model reads, if it states it."""
        return getattr(self.model, "vocab", None)

    @property
    def context(self) -> Any:
        """Most tokens that a prompt may have, if the model states it."""
        return getattr(self.model, "context", None)


def edited(model: AbstractModel, edits: Any) -> EditedModel:
    """Return a model that keeps edits, for methods that take none.

    Lenses, attribution, circuits and the verbs then work on the edited model, and
    further edits apply after its own. Edits inside blocks can be kept: those at every
    block site but `resid_pre`; for that, edit `resid_post` of the layer before.

    The model holds a copy of the edits per layer, so a `Patch` of whole activations
    takes their memory times the number of layers.

    Args:
        model: a decoder.
        edits: placed edits, or a list of them. Those with one place or source per
            prompt need the same prompts later.

    Returns:
        The edited model. Its blocks do not state `linear_writes`, so analyses of their
        weights refuse it.

    Raises:
        SiteError: a site outside blocks. Verbs raise for places that the model or the
            prompts do not have.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> without = mijax.edited(model, mijax.Zero().at("z", layer=1, head=2))
        >>> tokens = jax.numpy.array([5, 6, 7])
        >>> mijax.lens.logit_lens(without, tokens, top=1).logits.shape
        (3, 3, 1)
    """
    record = held(compose(edits))
    for name in filled(record):
        if name not in BLOCK_SITES or name == ENTRY:
            raise SiteError(
                f"A model keeps edits inside its blocks, got one at {name!r}: place it "
                f"at {EXIT!r} of the layer before, or give it to the verb."
            )
    layers = model.n_layers
    arrays, static = eqx.partition(record.blocks, eqx.is_array)
    each = jax.tree.map(lambda a: jnp.broadcast_to(a, (layers, *a.shape)), arrays)
    block = EditedBlock(
        model.blocks, eqx.combine(each, static), jnp.arange(layers, dtype=jnp.int32)
    )
    return EditedModel(model=model, edits=compose(edits), blocks=block)


def unedited(model: AbstractModel) -> AbstractModel:
    """Return a model without the edits that it keeps."""
    return unedited(model.model) if isinstance(model, EditedModel) else model
