"""The local replacement model: linear between features once a prompt is fixed."""

from collections.abc import Mapping
from typing import Any, NamedTuple, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mijax._errors import FrameError, ShapeError, SiteError
from mijax.core import AbstractEdit, AbstractModel, compose
from mijax.core.internal import Layered, Shift, check_model, site_shapes, stated
from mijax.dictionaries import Dictionary, Stored
from mijax.graphs._coders import AbstractCoders, coders_of
from mijax.nn import FrozenNorms, FrozenPattern, apply
from mijax.nn.internal import AbstractMLP, readout_of, with_gradient_of

# Sites of what multiplies two functions of the stream, other than attention.
PRODUCTS = ("z_gate", "mixer_out")


@final
class Replacement(eqx.Module):
    r"""A model in which transcoders replace the MLPs (Ameisen et al. 2025).

    On one prompt, attention patterns, norm scales and transcoder errors are frozen. The
    output of every MLP is then $\sum_f z_f w_f + e$, with feature activations, decoder
    rows and an error, and everything between a feature's decoder and a later feature's
    encoder is linear. `attribute` computes the coefficients of this linear map.

    Attributes:
        model: the model, without weight processing.
        coders: transcoders for all layers.
        read: site that the transcoders read, the same for all layers.
        write: site that the transcoders write.

    Examples:
        >>> import jax, mijax
        >>> from mijax import dictionaries as d, graphs
        >>> model = mijax.testing.tiny_llama(jax.random.key(0))
        >>> keys = jax.random.split(jax.random.key(1), 3)
        >>> coders = {
        ...     i: d.untrained(d.ReLU(), d.Transcoder(32), latents=64, key=key)
        ...     for i, key in enumerate(keys)
        ... }
        >>> graphs.Replacement.of(model, coders)
        Replacement(3 layers of 64 features, mlp_in -> mlp_out)
    """

    model: AbstractModel
    coders: AbstractCoders
    read: str = eqx.field(static=True)
    write: str = eqx.field(static=True)

    def __repr__(self) -> str:
        width = self.coders.encode
        layers = self.model.n_layers
        embed = _width(self.model)
        shape = jax.ShapeDtypeStruct((layers, 1, embed), jnp.float32)
        features = eqx.filter_eval_shape(width, shape).shape[-1]
        return (
            f"Replacement({layers} layers of {features} features, "
            f"{self.read} -> {self.write})"
        )

    @classmethod
    def of(
        cls,
        model: Any,
        transcoders: Mapping[int, Dictionary | Stored] | Dictionary | Stored,
        *,
        read: str | None = None,
        write: str | None = None,
    ) -> "Replacement":
        """Create the replacement model.

        Args:
            model: a decoder, or a language model.
            transcoders: a transcoder for each layer, all of the same shape, or one
                cross-layer transcoder. Layers without one keep their MLP as an error
                node.
            read: site that they read; by default the site in their files, or `mlp_in`.
            write: site that they write; by default the site in their files, or
                `mlp_out`.

        Returns:
            The replacement model.

        Raises:
            FrameError: a model without a readout, with gated or recurrent attention, or
                with processed weights when the dictionaries were trained on raw
                weights.
            ShapeError: dictionaries that are not transcoders of the model's width.
            SiteError: a site that the model does not have.
        """
        inner = getattr(model, "model", None)
        # A model with edits also has a `.model`: the one without them.
        if isinstance(inner, AbstractModel) and not isinstance(model, AbstractModel):
            model = inner
        check_model(model)
        readout_of(model, "An attribution graph", linear=False)
        coders = coders_of(transcoders, model.n_layers)
        values = transcoders.values() if isinstance(transcoders, Mapping) else ()
        first = next((s for s in values if isinstance(s, Stored)), transcoders)
        if isinstance(first, Stored):
            read = read or (first.site and first.site.name)
            write = write or (first.target and first.target.name)
        read, write = read or "mlp_in", write or "mlp_out"
        shapes = site_shapes(model, 1).blocks
        products = [n for n in PRODUCTS if getattr(shapes, n, None) is not None]
        if products:
            raise FrameError(
                "An attribution graph needs blocks that are linear once patterns and "
                f"norms are held; this model's are not, at {products[0]!r}."
            )
        for name in (read, write):
            spec = getattr(shapes, name, None)
            if spec is None or len(spec.shape) != 3:
                raise SiteError(
                    f"Transcoders need sites [layer, seq, embed], but this model has "
                    f"no such site {name!r}."
                )
        spec = getattr(shapes, read)
        found = eqx.filter_eval_shape(
            lambda x: coders.decode(coders.encode(x), x), spec
        )
        if found.shape != getattr(shapes, write).shape:
            raise ShapeError(
                f"The transcoders write {list(found.shape[2:])}, {write!r} has "
                f"{list(getattr(shapes, write).shape[2:])}."
            )
        if coders.skip is not None and not (
            (read, write) == ("mlp_in", "mlp_out")
            and stated(model.blocks, "linear_writes")
            and isinstance(getattr(model.blocks, "mlp", None), AbstractMLP)
        ):
            raise SiteError(
                "Skip transcoders need blocks that add the output of an MLP to the "
                "stream unchanged, and read mlp_in and write mlp_out."
            )
        return cls(model, coders, read, write)


def _width(model: AbstractModel) -> int:
    one = jnp.zeros(1, jnp.int32)
    return jax.eval_shape(model.embed, one, one).shape[-1]


class Local(NamedTuple):
    """Frozen values and features of a replacement model on one prompt.

    Attributes:
        latents: activation of every feature, 0 at left-out positions.
        errors: MLP outputs minus reconstructions, 0 at left-out positions.
        embed: input of the first block.
        stream: residual stream after the last block, at the last token.
        logits: logits at the last token.
        reads: inputs of the transcoders.
    """

    latents: Float[Array, "layer seq feature"]
    errors: Float[Array, "layer seq embed"]
    embed: Float[Array, "seq embed"]
    stream: Float[Array, " embed"]
    logits: Float[Array, " vocab"]
    reads: Float[Array, "layer seq embed"]


@eqx.filter_jit
def local(
    replacement: Replacement,
    tokens: Int[Array, " seq"],
    last: Int[Array, ""],
    nodes: Bool[Array, " seq"],
) -> Local:
    """Run the model once.

    Args:
        replacement: the model and its transcoders.
        tokens: one prompt, padded on the right.
        last: index of its last token.
        nodes: positions whose features and errors are nodes.
    """
    logits, acts = replacement.model(tokens)
    reads = getattr(acts.blocks, replacement.read).astype(jnp.float32)
    out = getattr(acts.blocks, replacement.write).astype(jnp.float32)
    latents = replacement.coders.encode(reads)
    errors = out - replacement.coders.decode(latents, reads)
    return Local(
        jnp.where(nodes[:, None], latents, 0.0),
        jnp.where(nodes[:, None], errors, 0.0),
        acts.embed.astype(jnp.float32),
        acts.blocks.resid_post[-1, last].astype(jnp.float32),
        logits[last].astype(jnp.float32),
        reads,
    )


class Frozen(AbstractEdit):
    """Treat the value as a constant in the backward pass, and add a shift."""

    shift: Any

    def __call__(self, x: Float[Array, "rows ..."], place: Any) -> Array:
        """Return the value; its gradient flows to the shift."""
        return jax.lax.stop_gradient(x) + self.shift.value.astype(x.dtype)


class Skipping(AbstractMLP):
    """An MLP whose gradient passes only through a linear path."""

    inner: AbstractMLP
    skip: Float[Array, "*layer in out"]

    def __call__(self, x: Float[Array, "rows embed"]) -> Float[Array, "rows embed"]:
        """Return the output of the MLP."""
        return with_gradient_of(self.inner(x), x @ self.skip)


def frozen(model: AbstractModel) -> AbstractModel:
    """Return the model with constant norm scales and attention patterns."""
    from penzai import pz  # noqa: PLC0415

    for rule in (FrozenNorms(), FrozenPattern()):
        if len(pz.select(model).at_instances_of(rule.replaces).get_sequence()):
            model = apply(model, rule).model
    return model


def linear_map(
    replacement: Replacement,
    tokens: Int[Array, " seq"],
    *,
    sites: tuple[str, ...] = (),
    shifts: tuple[str, ...] = (),
) -> Any:
    """Return the map from writes to reads, linearized around the prompt's run.

    It maps shifts of the embedding `[seq, embed]` and of the MLP outputs
    `[layer, seq, embed]` to the transcoders' inputs `[layer, seq, embed]`, the stream
    after the last block `[seq, embed]` and a tuple of other sites.

    Args:
        replacement: the model and its transcoders.
        tokens: the prompt.
        sites: other block sites to return.
        shifts: other block sites to shift, as further arguments of the map.
    """
    model, skip = frozen(replacement.model), replacement.coders.skip
    if skip is not None:
        new = Skipping(model.blocks.mlp, skip)  # pyright: ignore[reportAttributeAccessIssue]
        model = eqx.tree_at(lambda m: m.blocks.mlp, model, new)
    kind = Frozen if skip is None else Shift

    def mapped(embed: Array, writes: Array, *others: Array) -> tuple[Any, ...]:
        edits = [
            Shift(embed).at("embed"),
            kind(Layered(writes)).at(replacement.write),
            *(
                Shift(Layered(one)).at(name)
                for name, one in zip(shifts, others, strict=True)
            ),
        ]
        _, acts = model(tokens, compose(edits))
        reads = getattr(acts.blocks, replacement.read).astype(jnp.float32)
        stream = acts.blocks.resid_post[-1].astype(jnp.float32)
        return reads, stream, tuple(getattr(acts.blocks, name) for name in sites)

    return mapped


def pushed(mapped: Any, zeros: Any, shifts: Any) -> Any:
    """Push shifts of a linear map's inputs forward to its outputs.

    This is the transpose of the transpose, because frozen norms have only a backward
    rule.
    """
    outputs, pull = jax.vjp(mapped, *zeros)
    return jax.vjp(pull, jax.tree.map(jnp.zeros_like, outputs))[1](shifts)[0]
