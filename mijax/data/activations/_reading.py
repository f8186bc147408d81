"""Reads sites, and runs no layer above the highest of them."""

from collections.abc import Sequence as Several
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax._errors import PositionError, ShapeError, SiteError, TokenError
from mijax.core import AbstractModel, BlockSites, Place, Site
from mijax.core.internal import (
    Sequence,
    apply_block,
    check_sites,
    empty,
    get,
    part,
)
from mijax.data.activations._batch import Batch


class Reader(eqx.Module):
    """What is read, in one model or in several side by side.

    Attributes:
        model: the model, or a tuple of them.
        inputs: sites, their indices as arrays.
        targets: sites, none where the inputs are to be predicted.
        stack: whether the inputs, and whether the targets, have a site axis.
    """

    model: Any
    inputs: tuple[Site, ...]
    targets: tuple[Site, ...]
    stack: tuple[bool, bool] = eqx.field(static=True)

    def __call__(
        self, tokens: Int[Array, "batch seq"], lengths: Int[Array, " batch"]
    ) -> Batch:
        """Reads them at every token, `[batch, seq, *model, *site, width]`."""
        sites = (*self.inputs, *self.targets)
        models = self.model if isinstance(self.model, tuple) else (self.model,)
        one = lambda model: lambda *row: read(model, sites, *row)  # noqa: E731
        return self.stacked([jax.vmap(one(m))(tokens, lengths) for m in models])

    def stacked(self, found: list[list[Array]]) -> Batch:
        """Makes a batch of what each model has at each site, `[batch, seq, width]`."""
        values = found[0]
        if isinstance(self.model, tuple):
            values = [jnp.stack(site, axis=2) for site in zip(*found, strict=True)]
        split = len(self.inputs)
        parts = values[:split], values[split:]
        both = [
            jnp.stack(part, axis=-2) if stack else part[0]
            for part, stack in zip(parts, self.stack, strict=True)
            if part
        ]
        return Batch(*both)


def read(
    model: AbstractModel,
    sites: Several[Site],
    tokens: Int[Array, " seq"],
    length: Int[Array, ""] | None = None,
) -> list[Float[Array, "seq width"]]:
    """Reads sites of one prompt.

    The loop over layers ends after the highest layer that is asked for, and that layer
    is data: one program serves all of them. Nothing above it is computed.

    Args:
        model: the model.
        sites: places with one vector per token; block sites have one layer each.
        tokens: token ids.
        length: number of tokens before padding, which a model that is not causal
            masks.

    Returns:
        The rows of each site. Heads are joined, `heads * head_dim`, if none is chosen.
    """
    position = jnp.arange(tokens.shape[0], dtype=jnp.int32)
    rows = Sequence(position, length=None if model.causal else length)
    arrays, static = eqx.partition(model.blocks, eqx.is_array)

    want = {site.name for site in sites if site.layered}

    def block(layer: Array, x: Array) -> tuple[Array, BlockSites[Any]]:
        here = jax.tree.map(
            lambda a: jax.lax.dynamic_index_in_dim(a, layer, keepdims=False), arrays
        )
        one, place = eqx.combine(here, static), Place(rows, layer)
        return apply_block(one, x, empty().blocks, place, want=want)

    def values(acts: BlockSites[Any]) -> dict[int, Array]:
        return {
            i: part(getattr(acts, site.name), site, None)
            for i, site in enumerate(sites)
            if site.layered
        }

    def body(layer: Array, carry: Any) -> Any:
        x, kept = carry
        x, acts = block(layer, x)
        now = values(acts)
        here = {i: jnp.where(sites[i].layer == layer, now[i], kept[i]) for i in now}
        return x, here

    embed = model.embed(tokens, position)
    shapes = jax.eval_shape(lambda x: values(block(jnp.int32(0), x)[1]), embed)
    kept = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    x, kept = jax.lax.fori_loop(0, depth(model, sites), body, (embed, kept))
    found = {i: ends(model, s, embed, x) for i, s in enumerate(sites) if not s.layered}
    found |= kept
    return [found[i].reshape(tokens.shape[0], -1) for i in range(len(sites))]


def depth(model: AbstractModel, sites: Several[Site]) -> Int[Array, ""]:
    """Returns how many layers have to run."""
    needs = [
        model.n_layers if site.name in ("resid_final", "logits") else 0
        for site in sites
        if not site.layered
    ]
    layers = [site.layer + 1 for site in sites if site.layer is not None]
    return jnp.stack([jnp.asarray(n, jnp.int32) for n in needs + layers]).max()


def ends(model: AbstractModel, site: Site, embed: Array, x: Array) -> Array:
    """Returns a site outside the blocks; nothing that is not asked for."""
    if site.name == "embed":
        return part(embed, site, None)
    final = model.normalise(x)
    value = final if site.name == "resid_final" else model.unembed(final)
    return part(value, site, None)


def check(
    model: AbstractModel, sites: Several[Site], seq: int, last: int
) -> list[jax.ShapeDtypeStruct]:
    """Refuses sites that have not one vector per token of a row.

    Args:
        model: the model.
        sites: what is read.
        seq: tokens of a row.
        last: the largest token id.

    Returns:
        What `read` gives for each site, under a batch axis of 1.

    Raises:
        SiteError: no such site or layer, or a block site without its layer.
        PositionError: a site at one position, or rows longer than the context.
        TokenError: a token that the model does not have.
    """
    context = getattr(model, "context", None)
    if context is not None and seq > context:
        raise PositionError(
            f"Rows have {seq} tokens and the model's context is {context}: give "
            "shorter rows."
        )
    shapes = check_sites(model, jnp.zeros(seq, jnp.int32), list(sites))
    vocab = shapes.logits.shape[-1]
    if last >= vocab:
        raise TokenError(
            f"The corpus has token id {last} and the model {vocab} tokens: tokenise "
            "with the model's own tokenizer."
        )
    for site in sites:
        if site.position is not None:
            raise PositionError(
                f"{site!r} is at one position; activations are read at every token. "
                "Leave the position out."
            )
        if site.layered and np.ndim(site.layer if site.layer is not None else [0]):
            raise SiteError(
                f"Activations are read at one layer: give Site({site.name!r}, "
                "layer=...), and several sites for several layers."
            )
    return [kind(get(shapes, site.name), site) for site in sites]


def kind(shape: jax.ShapeDtypeStruct, site: Site) -> jax.ShapeDtypeStruct:
    """Returns shape and type of the rows of a site."""
    one = jax.ShapeDtypeStruct(shape.shape[site.layered :], shape.dtype)

    def rows(value: Array) -> Array:
        return part(value, site, None).reshape(1, value.shape[0], -1)

    return jax.eval_shape(rows, one)


def traced(sites: Several[Site]) -> tuple[Site, ...]:
    """Makes arrays of the indices of sites, so that others share their program."""
    return jax.tree.map(lambda i: jnp.asarray(i, jnp.int32), tuple(sites))


def of_one_width(sites: Several[Site], kinds: Several[Any]) -> None:
    """Refuses to stack sites of unequal width.

    Raises:
        ShapeError: they are.
    """
    widths = [kind.shape[-1] for kind in kinds]
    if len(set(widths)) > 1:
        found = ", ".join(
            f"{site.name} {width}" for site, width in zip(sites, widths, strict=True)
        )
        raise ShapeError(
            f"Sites of unequal width cannot be stacked ({found}): read them one by one."
        )
