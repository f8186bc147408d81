"""The stream of one tower, with its prefix on all names."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
from jaxtyping import Array, Float

from mijax.core import AbstractRows, AbstractStream


class TowerStream(AbstractStream):
    """A stream that adds a prefix to the names of its readers and writers.

    Attributes:
        stream: the stream.
        prefix: such as `"encoder."`.
    """

    stream: Any
    prefix: str = eqx.field(static=True)

    def read(
        self,
        *names: str,
        heads: int | None = None,
        norm: Callable[[Array], Array] | None = None,
    ) -> Any:
        """Read the stream."""
        full = [self.prefix + name for name in names]
        return self.stream.read(*full, heads=heads, norm=norm)

    def write(
        self,
        name: str,
        z: Float[Array, "rows ..."],
        weight: Float[Array, "... embed"],
        bias: Float[Array, " embed"] | None = None,
    ) -> "TowerStream":
        """Add `z @ weight + bias`."""
        return self._of(self.stream.write(self.prefix + name, z, weight, bias))

    def add(self, name: str, value: Float[Array, "rows embed"]) -> "TowerStream":
        """Add a value."""
        return self._of(self.stream.add(self.prefix + name, value))

    def mark(self, name: str) -> "TowerStream":
        """Name the stream."""
        return self._of(self.stream.mark(self.prefix + name))

    def keep(self, rows: AbstractRows) -> "TowerStream":
        """Continue with the rows that leave the block."""
        return self._of(self.stream.keep(rows))

    def normalize(self, norm: Callable[[Array], Array]) -> "TowerStream":
        """Replace the stream by its norm."""
        return self._of(self.stream.normalize(norm))

    def _of(self, stream: Any) -> "TowerStream":
        return TowerStream(stream, self.prefix)
