"""One weight of a file, cut into the parts that belong to the devices of a mesh."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

# From the path and shape of a weight to the devices of its parts.
Placing = Callable[[str, tuple[int, ...]], NamedSharding]
# Start and stop of a part along every axis.
Bounds = tuple[tuple[int, int], ...]


class Parts:
    """The parts of one weight on the devices of this process, filled layer by layer.

    Without a placement it is one array on the default device.

    Args:
        name: path of the weight in its model.
        spec: its shape and dtype.
        place: where each weight belongs.
    """

    def __init__(self, name: str, spec: Any, place: Placing | None) -> None:
        self.shape, dtype = spec.shape, spec.dtype
        shape = self.shape
        self.place = None if place is None else place(name, shape)
        self.parts = {_bounds((...,), shape): np.zeros(shape, dtype)}
        self.owners: dict[Any, Bounds] = {}
        if self.place is not None:
            found = self.place.addressable_devices_indices_map(shape)
            self.owners = {
                d: _bounds(i, shape) for d, i in found.items() if i is not None
            }
            self.parts = {
                bounds: np.zeros([stop - start for start, stop in bounds], dtype)
                for bounds in self.owners.values()
            }

    def fill(self, layer: int | None, value: np.ndarray) -> None:
        """Copy one layer, or everything if `layer` is `None`, into every part."""
        skip = layer is not None
        whole = np.broadcast_to(value, self.shape[skip:])
        for bounds, part in self.parts.items():
            # Layers are never split.
            cut = tuple(slice(*pair) for pair in bounds[skip:])
            part[layer if skip else ...] = whole[cut]

    def array(self) -> jax.Array:
        """Return the array, its parts on their devices."""
        if self.place is None:
            return jnp.asarray(next(iter(self.parts.values())))
        each = [jax.device_put(self.parts[own], d) for d, own in self.owners.items()]
        return jax.make_array_from_single_device_arrays(self.shape, self.place, each)


def _bounds(index: tuple[Any, ...], shape: tuple[int, ...]) -> Bounds:
    """Return start and stop along every axis."""
    if index == (...,):
        index = (slice(None),) * len(shape)
    pairs = zip(index, shape, strict=True)
    return tuple(one.indices(size)[:2] for one, size in pairs)
