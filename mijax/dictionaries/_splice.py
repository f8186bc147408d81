"""Splices: a dictionary in the place of an activation, and edits of its latents."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mijax._errors import ShapeError, SiteError
from mijax.core import AbstractEdit, Place, Scale, Set, Site
from mijax.core._operands import check_per_prompt, per_row
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
            them joined, or each on its own, as its size says.
        change: an edit of latents, `[rows, latent]`; `None` changes nothing.
        error: keep what the dictionary misses.
        every_layer: the dictionary is meant for all layers, so that `at` may leave the
            layer out: every layer, or the one that a sweep over layers is at.

    Raises:
        ShapeError: a dictionary that does not write what it reads.
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

    def __check_init__(self):
        """Refuses dictionaries and latents that cannot be spliced in."""
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
        bound = Splice(self.dictionary, change, self.error, self.every_layer)
        if site.layer is None or jnp.ndim(site.layer):
            return bound
        return AtLayer(bound, jnp.asarray(site.layer, jnp.int32))

    def check_operand(self, spec: Any, rows: range, batch: tuple[int, ...]) -> None:
        """Refuses an edit of latents that does not fit what is run."""
        if self.change is not None:
            size = (rows.start, self.dictionary.latents)
            latents = jax.ShapeDtypeStruct(size, jnp.float32)
            self.change.check_operand(latents, rows, batch)

    def __call__(self, x: Float[Array, "rows ..."], place: Place) -> Array:
        """Returns what the dictionary makes of the rows."""
        wide = fitting(self.dictionary, x, heads=x.ndim > 2)
        if self.change is None and self.error:
            return x
        latents = self.dictionary.encode(wide)
        new = latents if self.change is None else self.change(latents, place)
        if self.error:
            out = wide + written(self.dictionary, new - latents)
        else:
            out = self.dictionary.decode(new)
        return out.reshape(x.shape).astype(x.dtype)


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
            where = per_row(self.which, place, x) == jnp.arange(x.shape[-1])
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
        factor: a number, or one per prompt.

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
