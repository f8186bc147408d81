"""The residual stream as its readers and writers see it.

A block that says who reads and who writes (`AbstractBlock.connect`) can be run with a
stream in which every reader sees something else: that is all a circuit needs.
"""

import abc

import equinox as eqx
from jaxtyping import Array, Float


class AbstractStream(eqx.Module):
    """The residual stream inside one block.

    Reading leaves the stream as it is; writing returns the stream after it.
    """

    @abc.abstractmethod
    def read_heads(self) -> tuple[Float[Array, "rows heads embed"], ...]:
        """Returns what the query, the key and the value of every head reads."""

    @abc.abstractmethod
    def read_mlp(self) -> Float[Array, "rows embed"]:
        """Returns what the MLP reads."""

    @abc.abstractmethod
    def write_heads(
        self,
        heads: Float[Array, "rows heads embed"],
        bias: Float[Array, " embed"] | None,
    ) -> "AbstractStream":
        """Adds what every head writes, and a bias that belongs to none of them."""

    @abc.abstractmethod
    def write_mlp(self, out: Float[Array, "rows embed"]) -> "AbstractStream":
        """Adds what the MLP writes."""
