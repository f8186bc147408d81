"""Result of a sweep: the metric of every run, and the amount of work."""

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from mijax._errors import ShapeError
from mijax.core._axis import Axis
from mijax.core._intervals import Interval, interval, interval_of_ratio
from mijax.core._recovered import refuse_equal_ends
from mijax.core._shown import cut, shown

# The first layer of an empty tile.
NEVER = 2**30


class Work(NamedTuple):
    """The amount of work of a sweep.

    Attributes:
        lanes: prompts times cells.
        run: lanes that were run; the others are known to change nothing.
        row_layers: positions times layers that these lanes need.
        computed: positions times layers that were computed, padding included.
        chunks: calls of the compiled program.
    """

    lanes: int
    run: int = 0
    row_layers: int = 0
    computed: int = 0
    chunks: int = 0


class Sweep(eqx.Module):
    """Result of a sweep.

    Attributes:
        values: metric of every patched run, `[prompt, *axes]` (`[*axes]` for a single
            prompt).
        base: metric of the unedited run, `[prompt]` (`[]` for a single prompt).
        axes: name and labels of each axis.
        work: what was run.
    """

    values: Float[Array, "..."]
    base: Float[Array, "..."]
    axes: tuple[Axis, ...] = eqx.field(static=True)
    work: Work = eqx.field(static=True)

    def __repr__(self) -> str:
        axes = " x ".join(f"{len(axis.labels)} {axis.name}s" for axis in self.axes)
        return cut(f"Sweep({axes}: {shown(self.values)}; base {shown(self.base)})")

    def mean(self) -> Float[Array, "..."]:
        """Returns the mean over prompts, `[*axes]`."""
        return self.values.mean(0) if self.base.ndim else self.values

    def interval(self, **options: Any) -> Interval:
        """Returns the mean over prompts with its confidence interval, `[*axes]`.

        Args:
            **options: of `mijax.interval`.

        Raises:
            ShapeError: for a single prompt, which has no spread.
        """
        if not self.base.ndim:
            raise ShapeError("An interval needs several prompts: sweep a batch.")
        return interval(self.values, **options)

    def recovered(self, clean: Float[Array, " prompt"], **options: Any) -> Interval:
        r"""Returns the share of the effect that each cell restores, `[*axes]`.

        The ratio of means, $(\bar m - \bar m_*) / (\bar m_{cl} - \bar m_*)$ with $m_*$
        the unedited run, as `mijax.recovered` has it. Its interval resamples prompts
        and takes the ratio of each resample, so that both ends vary with it.

        Args:
            clean: metric of the clean run, `[prompt]`.
            **options: `level`, `resamples` and `key`, as of `mijax.interval`.

        Raises:
            ShapeError: for a single prompt, or another number of prompts.
            NotFiniteError: clean and unedited runs have the same mean.
        """
        clean = jnp.asarray(clean)
        if self.base.size < 2 or clean.shape != self.base.shape:
            raise ShapeError(
                f"A share of {self.base.size} prompts needs the clean metric of as "
                f"many, and of several; got shape {clean.shape}."
            )
        cells = (1,) * (self.values.ndim - 1)
        base = self.base.reshape(-1, *cells)
        refuse_equal_ends(clean.mean(), self.base.mean())
        return interval_of_ratio(self.values - base, clean - self.base, **options)
