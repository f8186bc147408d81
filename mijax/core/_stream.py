"""The residual stream as its readers and writers see it.

A block reads and writes by name, in the lines that compute it. In a plain run everyone
reads the same stream, and what is written is summed inside the product. Circuits run
the same block with a stream in which every reader sees something else.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from mijax._errors import SiteError
from mijax.core._mark import site
from mijax.core._rows import AbstractRows

EMBED = "position embed"


class AbstractStream(eqx.Module):
    """The residual stream inside one block.

    Names are those of sites: a block reads for `q`, `k`, `v` and `mlp_in`, and writes
    `attn_out` and `mlp_out`. Each name occurs once in a block. Reading leaves the
    stream as it is; writing returns the stream after it.
    """

    @abc.abstractmethod
    def read(
        self,
        *names: str,
        heads: int | None = None,
        norm: Callable[[Array], Array] | None = None,
    ) -> Any:
        """Read the stream.

        Args:
            *names: names of the readers.
            heads: number of heads that read under each name; `None` for one reader,
                whose input is a site of that name.
            norm: applied to what is read.

        Returns:
            The stream that the reader sees, `[rows, embed]`, or `[rows, heads, embed]`
            where each head sees its own; a tuple of these for several names.
        """

    @abc.abstractmethod
    def write(
        self,
        name: str,
        z: Float[Array, "rows ..."],
        weight: Float[Array, "... embed"],
        bias: Float[Array, " embed"] | None = None,
    ) -> Any:
        """Add `z @ weight + bias`, where each head writes its own term.

        Args:
            name: name of the writer; the sum is a site of that name.
            z: `[rows, heads, head_dim]`, or `[rows, width]` for one writer.
            weight: `[heads, head_dim, embed]` or `[width, embed]`.
            bias: belongs to none of the heads.

        Returns:
            The stream after it.
        """

    @abc.abstractmethod
    def add(self, name: str, value: Float[Array, "rows embed"]) -> Any:
        """Add a value, which is a site of this name.

        Args:
            name: name of the writer.
            value: what it writes.

        Returns:
            The stream after it.
        """

    def mark(self, name: str) -> Any:
        """Name the stream; runs of circuits have no such site."""
        return self

    def keep(self, rows: AbstractRows) -> Any:
        """Go on with the rows that leave the block."""
        return self

    def normalize(self, norm: Callable[[Array], Array]) -> Any:
        """Replace the stream by its norm, as blocks of encoders do after each write.

        Args:
            norm: what is applied to the stream.

        Returns:
            The stream after it.

        Raises:
            SiteError: a graph of edges, in which readers see sums of what is written.
        """
        raise SiteError(
            "These blocks normalize the residual stream after each write, so it is not "
            "a sum of nodes: circuits of edges need blocks that only add to it. Use "
            "sweep or gradients, or circuits of nodes of a mijax.model."
        )


def summed_write(
    z: Float[Array, "rows ..."], weight: Float[Array, "... embed"]
) -> Float[Array, "rows embed"]:
    """Return the outputs of all heads, or of a single writer."""
    return jnp.einsum("nhd,hde->ne", z, weight) if z.ndim == 3 else z @ weight


class PlainStream(AbstractStream):
    """The stream of a plain run."""

    x: Float[Array, "rows embed"]

    def read(
        self,
        *names: str,
        heads: int | None = None,
        norm: Callable[[Array], Array] | None = None,
    ) -> Any:
        """Read the stream, once for all readers."""
        x = self.x if norm is None else norm(self.x)
        if heads is None:
            found = tuple(site(name, x, EMBED) for name in names)
        else:
            found = (x,) * len(names)
        return found if len(names) > 1 else found[0]

    def write(
        self,
        name: str,
        z: Float[Array, "rows ..."],
        weight: Float[Array, "... embed"],
        bias: Float[Array, " embed"] | None = None,
    ) -> "PlainStream":
        """Add the sum over heads."""
        out = summed_write(z, weight)
        return self.add(name, out if bias is None else out + bias)

    def add(self, name: str, value: Float[Array, "rows embed"]) -> "PlainStream":
        """Add a value."""
        return PlainStream(self.x + site(name, value, EMBED))

    def mark(self, name: str) -> "PlainStream":
        """Name the stream."""
        return PlainStream(site(name, self.x, EMBED))

    def keep(self, rows: AbstractRows) -> "PlainStream":
        """Go on with the rows that leave the block."""
        return PlainStream(rows.keep(self.x))

    def normalize(self, norm: Callable[[Array], Array]) -> "PlainStream":
        """Replace the stream by its norm."""
        return PlainStream(norm(self.x))
