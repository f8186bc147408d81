"""Transcoders in the place of MLPs."""

from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mijax._errors import ShapeError, SiteError
from mijax.core import AbstractModel
from mijax.dictionaries._dictionary import Dictionary
from mijax.dictionaries._wiring import Transcoder
from mijax.nn.internal import AbstractMLP, with_gradient_of


class Transcoded(AbstractMLP):
    """MLPs of which some are transcoders; every array has a leading layer axis.

    Attributes:
        inner: the MLPs.
        dictionary: the transcoders; zeros at layers that keep their MLP.
        here: at which layers there is one.
        error: keep what the transcoder misses, as a constant of the backward pass.
    """

    inner: AbstractMLP
    dictionary: Dictionary
    here: Bool[Array, "*layer"]
    error: bool = eqx.field(static=True)

    def __call__(self, x: Float[Array, "rows embed"]) -> Float[Array, "rows embed"]:
        """Computes the MLP or its transcoder at the rows."""
        out = self.inner(x)

        def transcoded() -> Array:
            found = self.dictionary(x.astype(jnp.float32)).astype(out.dtype)
            return with_gradient_of(out, found) if self.error else found

        return jax.lax.cond(self.here, transcoded, lambda: out)


def replace_mlps(
    model: AbstractModel, transcoders: Mapping[int, Dictionary], *, error: bool = False
) -> AbstractModel:
    """Puts transcoders in the place of MLPs (Dunefsky et al. 2024, arXiv:2406.11944).

    A transcoder here reads `mlp_in`, after the norm as the MLP does, and writes
    `mlp_out`: train it on `Activations(..., Site("mlp_in", layer), targets=...)`.
    `mlp_pre` and `mlp_post` remain those of the MLP on the same input, and editing
    them there changes nothing without `error`. Blocks are scanned, so that every layer
    takes the memory of a transcoder, also one that keeps its MLP.

    Args:
        model: a model whose blocks have an `mlp`.
        transcoders: one per layer that is replaced, alike but for their numbers.
        error: add what each transcoder misses, as a constant of the backward pass: the
            model then computes what it did, bit for bit, and its gradients are those of
            the transcoders.

    Returns:
        The model with transcoders in it.

    Raises:
        SiteError: blocks without MLPs, or a layer that there is not.
        ShapeError: dictionaries that are no transcoders of the stream, or not alike.

    Examples:
        >>> from mijax import dictionaries as d
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> coder = d.untrained(
        ...     *(d.TopK(4), d.Transcoder(32)), latents=64, key=jax.random.key(1)
        ... )
        >>> replaced = replace_mlps(model, {1: coder})
        >>> mijax.run(replaced, jnp.array([5, 6, 7])).shape
        (3, 64)
    """
    mlp = getattr(model.blocks, "mlp", None)
    if not isinstance(mlp, AbstractMLP):
        raise SiteError("The model's blocks have no MLP that could be replaced.")
    unknown = [i for i in transcoders if not 0 <= i < model.n_layers]
    if unknown or not transcoders:
        raise SiteError(
            f"Layers are 0 to {model.n_layers - 1}, got transcoders of "
            f"{unknown or 'none'}."
        )
    first, *rest = transcoders.values()
    for one in (first, *rest):
        check(model, one, first)
    none = jax.tree.map(jnp.zeros_like, first)
    each = [transcoders.get(i, none) for i in range(model.n_layers)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    here = jnp.array([i in transcoders for i in range(model.n_layers)])
    new = Transcoded(mlp, stacked, here, error)
    return eqx.tree_at(lambda m: m.blocks.mlp, model, new)


def check(model: AbstractModel, one: Dictionary, first: Dictionary) -> None:
    """Refuses a dictionary that cannot stand for an MLP, or beside the first."""
    width = jax.eval_shape(model.embed, jnp.zeros(1, int), jnp.zeros(1, int)).shape[-1]
    wiring = one.wiring
    if not isinstance(wiring, Transcoder) or (wiring.reads, wiring.writes) != (
        (width,),
        (width,),
    ):
        raise ShapeError(
            f"An MLP is replaced by a Transcoder({width}), got {wiring!r}."
        )
    shapes = [
        (jax.tree.structure(d), [jnp.shape(a) for a in jax.tree.leaves(d)])
        for d in (one, first)
    ]
    if shapes[0] != shapes[1]:
        raise ShapeError(
            "Transcoders of one model are alike but for their numbers: the same "
            "architecture and as many latents."
        )
