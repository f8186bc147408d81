"""Splices: a dictionary in the place of an activation, and edits of its latents."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mijax._errors import ShapeError, SiteError
from mijax.core import AbstractEdit, Place, Scale, Set, Site
from mijax.core.internal import TokensLike, as_tokens, check_per_prompt
from mijax.dictionaries._dictionary import Dictionary
from mijax.dictionaries._latents import check_latents, fitting, written
from mijax.dictionaries._wiring import SAE

# What latents are to their edits: one row per token, no layers.
LIKE_EMBED = Site("embed")


class Splice(AbstractEdit):
    r"""Puts a dictionary in the place of an activation, and edits its latents.

    With $f$ the latents of $x$ and $e = x - \mathrm{decode}(f)$ what they miss,
    $x \mapsto \mathrm{decode}(f') + e = x + (f' - f) D$, where $f'$ are the edited
    latents and the rows of $D$ are what each writes. So only what the edit changes is
    changed; without an edit $x$ is left as it is, bit for bit. With `error=False`,
    $x \mapsto \mathrm{decode}(f')$: the model then runs on what the dictionary says.

    Latents are edited by edits, as activations are: `Zero()`, `Scale(2.0)`,
    `Patch(latents(...))`, `Mean(latents(...))`, of single latents `hold(7, 0.0)` and
    `scale(7, 2.0)`. Computed in float32 whatever the dtype of the model, and at the
    layer that `at` names only.

    Attributes:
        dictionary: a dictionary that writes what it reads. At sites with heads it reads
            all heads joined, or the head that `at` names, as its size implies.
        change: an edit of latents, `[rows, latent]`; `None` changes nothing.
        error: keep what the dictionary misses.
        every_layer: the dictionary is meant for all layers, so that `at` may leave the
            layer out: every layer, or the one that a sweep over layers is at.
        every_head: a dictionary of one head is meant for all heads, so that `at` may
            leave the head out.
        keep: tokens whose activations are left as they are, `[seq]` or
            `[prompts, seq]`, for instance special ones that the dictionary was not
            trained on: `keep=where_tokens(prompts, [tokenizer.bos])`. Tokens after
            these, as in `generate`, are spliced.

    Raises:
        ShapeError: a dictionary that does not write what it reads; a dictionary of one
            head without `head` in `at`, unless `every_head`; `keep` of another shape
            than the tokens.
        SiteError: an edit of a latent that the dictionary does not have; in `at`, a
            site of a block without its layer, unless `every_layer`.

    Examples:
        >>> from mijax import dictionaries as d
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> sae = d.untrained(d.TopK(4), d.SAE(32), latents=64, key=jax.random.key(1))
        >>> tokens = jnp.array([5, 6, 7])
        >>> ablate = d.Splice(sae, d.hold(9, 0.0)).at("resid_post", layer=1)
        >>> mijax.run(model, tokens, ablate).shape
        (3, 64)
        >>> none = d.Splice(sae).at("resid_post", layer=1)
        >>> bool((mijax.run(model, tokens, none) == mijax.run(model, tokens)).all())
        True
    """

    dictionary: Dictionary
    change: AbstractEdit | None = None
    error: bool = eqx.field(static=True, default=True)
    every_layer: bool = eqx.field(static=True, default=False)
    every_head: bool = eqx.field(static=True, default=False)
    keep: Any = None

    def __check_init__(self):
        """Refuses dictionaries and latents that cannot be spliced in."""
        if self.keep is not None and jnp.ndim(self.keep) not in (1, 2):
            raise ShapeError(
                "keep holds a boolean per token, [seq] or [prompts, seq], got shape "
                f"{jnp.shape(self.keep)}."
            )
        wiring = self.dictionary.wiring
        if not isinstance(wiring, SAE):
            raise ShapeError(
                "A splice takes a dictionary that writes the activation that it reads "
                f"(an SAE), got a {type(wiring).__name__}; for transcoders there is "
                "replace_mlps."
            )
        if isinstance(self.change, OnLatents):
            self.change.check(self.dictionary.latents)

    def bind(self, site: Site) -> AbstractEdit:
        """Binds the edit of latents, and says at which layer there is work to do."""
        if site.layered and site.layer is None and not self.every_layer:
            raise SiteError(
                f"A dictionary is of one layer: give at({site.name!r}, layer=...), or "
                "Splice(..., every_layer=True) for all layers, or a sweep over them."
            )
        change = None if self.change is None else self.change.bind(LIKE_EMBED)
        every_head = self.every_head or site.head is not None
        keep = None if self.keep is None else jnp.asarray(self.keep, bool)
        bound = dataclasses.replace(
            self, change=change, every_head=every_head, keep=keep
        )
        if site.layer is None or jnp.ndim(site.layer):
            return bound
        return AtLayer(bound, jnp.asarray(site.layer, jnp.int32))

    def check_operand(self, spec: Any, rows: range, batch: tuple[int, ...]) -> None:
        """Refuses an edit of latents that does not fit what is run."""
        if self.change is not None:
            size = (rows.start, self.dictionary.latents)
            latents = jax.ShapeDtypeStruct(size, jnp.float32)
            self.change.check_operand(latents, rows, batch)
        if self.keep is None:
            return
        own = self.keep.shape[:-1]
        if own not in ((), batch) or self.keep.shape[-1] not in rows:
            raise ShapeError(
                f"keep has shape {self.keep.shape}, the tokens have shape "
                f"{(*batch, rows.stop - 1)}: give a boolean per token."
            )

    def __call__(self, x: Float[Array, "rows ..."], place: Place) -> Array:
        """Return the output of the dictionary for the rows."""
        wide = fitting(self.dictionary, x, heads=x.ndim > 2)
        if x.ndim > 2 and wide.shape == x.shape and not self.every_head:
            raise ShapeError(
                f"The dictionary reads {x.shape[-1]} numbers, one of {x.shape[1]} "
                "heads: give at(..., head=...), or Splice(..., every_head=True) for "
                "all heads."
            )
        if self.change is None and self.error:
            return x
        latents = self.dictionary.encode(wide)
        new = latents if self.change is None else self.change(latents, place)
        if self.error:
            out = wide + written(self.dictionary, new - latents)
        else:
            out = self.dictionary.decode(new)
        out = out.reshape(x.shape).astype(x.dtype)
        if self.keep is None:
            return out
        kept = self.kept(place).reshape(-1, *(1,) * (x.ndim - 1))
        return jnp.where(kept, x, out)

    def kept(self, place: Place) -> Bool[Array, " rows"]:
        """Return the rows that are left as they are."""
        position, length = place.rows.position, self.keep.shape[-1]
        inside = jnp.minimum(position, length - 1)
        if self.keep.ndim == 1:
            found = self.keep[inside]
        else:
            prompt = 0 if place.rows.prompt is None else place.rows.prompt
            found = self.keep[prompt, inside]
        return found & (position < length)


def where_tokens(
    prompts: TokensLike, ids: Sequence[int]
) -> Bool[Array, "*prompts seq"]:
    """Return a boolean per token: whether it is one of some ids.

    Args:
        prompts: prompts, or token ids, `[*prompts, seq]`.
        ids: ids of tokens, such as those of special tokens.

    Returns:
        The booleans, for `Splice(..., keep=...)`.

    Examples:
        >>> where_tokens(jnp.array([[1, 5, 6], [1, 7, 1]]), [1]).tolist()
        [[True, False, False], [True, False, True]]
    """
    return jnp.isin(as_tokens(prompts), jnp.asarray(list(ids), jnp.int32))


class OnLatents(AbstractEdit):
    """An edit of some latents only: what `Splice` takes as its change.

    Attributes:
        edit: any edit, for instance `Patch(latents(...))`.
        which: index of a latent, or one per prompt; it may be traced, so that a sweep
            over latents under `vmap` is one program. Or a mask of latents, `[latent]`.

    Examples:
        >>> first_ten = OnLatents(mijax.Zero(), jnp.arange(64) < 10)
    """

    edit: AbstractEdit
    which: Any = eqx.field(converter=jnp.asarray)

    def check(self, latents: int) -> None:
        """Refuses latents that a dictionary with so many does not have."""
        if self.which.dtype == bool:
            if self.which.shape != (latents,):
                raise ShapeError(
                    f"A mask of latents has shape ({latents},), got {self.which.shape}."
                )
            return
        check_latents(self.which, latents)

    def bind(self, site: Site) -> "OnLatents":
        """Binds the edit."""
        return OnLatents(self.edit.bind(site), self.which)

    def check_operand(self, spec: Any, rows: range, batch: tuple[int, ...]) -> None:
        """Refuses latents and an operand of other prompts."""
        if self.which.dtype != bool:
            check_per_prompt(self.which, "latent", batch)
        self.edit.check_operand(spec, rows, batch)

    def __call__(self, x: Float[Array, "rows ..."], place: Place) -> Array:
        """Returns edited latents where they are meant, the others as they are."""
        if self.which.dtype == bool:
            where = self.which
        else:
            where = place.each(self.which, x) == jnp.arange(x.shape[-1])
        return jnp.where(where, self.edit(x, place), x)


def hold(which: Any, value: Any) -> OnLatents:
    """Holds latents at a value; 0 ablates them.

    Args:
        which: a latent, one per prompt, or a mask of latents; may be traced.
        value: a number, or one per latent.

    Returns:
        The change that `Splice` takes.

    Examples:
        >>> hold(7, 0.0).which.item()
        7
    """
    return OnLatents(Set(value), which)


def scale(which: Any, factor: Any) -> OnLatents:
    """Multiplies latents.

    Args:
        which: a latent, one per prompt, or a mask of latents; may be traced.
        factor: a number, or `PerPrompt` of numbers.

    Returns:
        The change that `Splice` takes.

    Examples:
        >>> scale(7, 2.0).which.item()
        7
    """
    return OnLatents(Scale(factor), which)


class AtLayer(AbstractEdit):
    """An edit that is computed at one layer only: others are spared its work."""

    edit: AbstractEdit
    layer: Int[Array, ""]

    def check_operand(self, spec: Any, rows: range, batch: tuple[int, ...]) -> None:
        """Refuses what the edit refuses."""
        self.edit.check_operand(spec, rows, batch)

    def __call__(self, x: Float[Array, "rows ..."], place: Place) -> Array:
        """Branches on the layer."""
        if place.layer is None:
            return self.edit(x, place)
        here = place.layer == self.layer
        return jax.lax.cond(here, lambda x: self.edit(x, place), lambda x: x, x)
