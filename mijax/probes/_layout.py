"""Where probes and examples go: chunks in turn, lanes at once, devices of a mesh."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mijax._errors import ConfigError
from mijax.probes._frame import Sequences

# Working memory of the probes that are fitted at once, in bytes. A processor reads
# inputs faster where they stay in its cache, and gains nothing from more lanes.
MEMORY = {"cpu": 2**23, "other": 2**30}


class Layout(NamedTuple):
    """How probes are laid out.

    Attributes:
        probes: how many there are.
        chunks: groups that run in turn.
        lanes: probes of a group, which run at once.
        mesh: devices, or `None`.
    """

    probes: int
    chunks: int
    lanes: int
    mesh: Mesh | None

    def spread(self, x: Any) -> Any:
        """Lays out inputs `[probe, example, ...]` as `[chunk, lane, example, ...]`."""

        def one(leaf: jax.Array) -> jax.Array:
            missing = self.chunks * self.lanes - self.probes
            if missing:
                leaf = jnp.concatenate([leaf, *[leaf[-1:]] * missing])
            leaf = self._padded(leaf, 1)
            leaf = leaf.reshape(self.chunks, self.lanes, *leaf.shape[1:])
            return self._put(leaf, None, "model", "data")

        return jax.tree.map(one, x)

    def shared(self, labels: np.ndarray, *, axis: int = 0) -> jax.Array:
        """Places what all probes share; zeros fill up the examples on `axis`."""
        return self._put(
            self._padded(jnp.asarray(labels), axis), *(None,) * axis, "data"
        )

    def gather(self, tree: Any) -> Any:
        """Brings results `[chunk, lane, ...]` back as `[probe, ...]`."""
        if self.mesh is not None:
            tree = jax.tree.map(jnp.asarray, jax.device_get(tree))
        return jax.tree.map(
            lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[: self.probes], tree
        )

    def _padded(self, leaf: jax.Array, axis: int) -> jax.Array:
        missing = -leaf.shape[axis] % _size(self.mesh, "data")
        if not missing:
            return leaf
        widths = [(0, missing if i == axis else 0) for i in range(leaf.ndim)]
        return jnp.pad(leaf, widths)

    def _put(self, leaf: jax.Array, *axes: str | None) -> jax.Array:
        if self.mesh is None:
            return leaf
        names = self.mesh.axis_names
        spec = PartitionSpec(*(a if a in names else None for a in axes))
        return jax.device_put(leaf, NamedSharding(self.mesh, spec))


def lay_out(x: Any, outputs: int, mesh: Mesh | None) -> Layout:
    """Decides how many probes run at once.

    Args:
        x: inputs `[probe, example, ...]`.
        outputs: of a probe.
        mesh: devices, with an axis `"data"` for examples or `"model"` for probes.

    Returns:
        The layout.

    Raises:
        ConfigError: a mesh without these axes, or one that does not divide the probes.
    """
    array = x.x if isinstance(x, Sequences) else x
    probes, size = array.shape[0], math.prod(array.shape[1:])
    if mesh is not None and not {"data", "model"} & set(mesh.axis_names):
        raise ConfigError(
            f"The mesh has axes {mesh.axis_names}; expected 'data' (examples) or "
            "'model' (probes)."
        )
    devices = _size(mesh, "model")
    if probes % devices:
        raise ConfigError(
            f"{probes} probes do not divide among {devices} devices of the mesh axis "
            "'model': choose an axis that divides them."
        )
    # Copies of the inputs; logits, and second derivatives of those that have some.
    floats = 3 * size + 8 * outputs * array.shape[1] + array.shape[-1] ** 2
    kind = "cpu" if jax.default_backend() == "cpu" else "other"
    most = max(1, MEMORY[kind] * _size(mesh, "data") // (4 * floats))
    chunks = -(-(probes // devices) // most)
    lanes = -(-(probes // devices) // chunks)
    return Layout(probes, chunks, lanes * devices, mesh)


def _size(mesh: Mesh | None, axis: str) -> int:
    return 1 if mesh is None else mesh.shape.get(axis, 1)
