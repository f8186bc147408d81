"""Weights of a model spread over the devices of a mesh, by the names of their axes."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mijax._errors import ConfigError
from mijax.models._family import path_name
from mijax.models._parts import Placing

# Axes of each weight after that of layers, by the last part of its path. Others (norms,
# biases of the output, rotary frequencies) are small and copied to every device.
AXES = {
    **{f"w_{x}": ("embed", "heads", "head_dim") for x in "qkv"},
    **{f"b_{x}": ("heads", "head_dim") for x in "qkv"},
    "w_o": ("heads", "head_dim", "embed"),
    **{f"w_{x}_up": ("latent", "heads", "head_dim") for x in "qkv"},
    "w_q_latent": ("embed", "latent"),
    "w_kv_latent": ("embed", "latent"),
    "w_k_rotated": ("embed", "head_dim"),
    "w_gate": ("embed", "mlp"),
    "w_in": ("embed", "mlp"),
    "b_in": ("mlp",),
    "w_out": ("mlp", "embed"),
    "embedding.weight": ("vocab", "embed"),
    "unembedding.weight": ("vocab", "embed"),
}


@dataclasses.dataclass(frozen=True)
class Sharding:
    """Axes of a mesh over which the axes of weights are split; `None` is not split.

    The defaults split heads, neurons and the vocabulary, so that each device computes
    its part of every layer (Shoeybi et al. 2019, arXiv:1909.08053). With
    `embed="data"` the weights are also split over the devices that share the prompts,
    and gathered layer by layer (FSDP, Zhao et al. 2023, arXiv:2304.11277).

    A weight is not split along an axis whose size is no multiple of the number of
    devices, such as two key and value heads over four devices, and not along an axis
    that the mesh lacks.

    Attributes:
        heads: attention heads, of queries and of keys and values.
        mlp: neurons of MLPs.
        vocab: tokens of the embedding and the unembedding.
        embed: width of the residual stream, in weights only.

    Examples:
        >>> import jax, mijax
        >>> mesh = jax.make_mesh((1, 1), ("data", "model"))
        >>> Sharding().of("blocks.mlp.w_in", (2, 8, 32), mesh)
        P(None, None, 'model')
    """

    heads: str | None = "model"
    mlp: str | None = "model"
    vocab: str | None = "model"
    embed: str | None = None

    def of(self, name: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
        """Return the partition of a weight.

        Args:
            name: its path in the model, such as `"blocks.attention.w_q"`.
            shape: its shape.
            mesh: the devices.

        Returns:
            The axis of the mesh for each axis of the weight.
        """
        ends = (name, name.rpartition(".")[2])
        axes = next((AXES[end] for end in ends if end in AXES), ())
        if axes == ("embed", "mlp") and len(shape) > 3:
            axes = ("embed", "expert", "mlp")
        if len(axes) > len(shape):
            return PartitionSpec()
        over = [None] * (len(shape) - len(axes))
        over += [self._over(axis, size, mesh) for axis, size in _sizes(axes, shape)]
        return PartitionSpec(*over)

    def _over(self, axis: str, size: int, mesh: Mesh) -> str | None:
        name = getattr(self, axis, None)
        splits = name in mesh.shape and size % mesh.shape[name] == 0
        return name if splits else None


def _sizes(axes: tuple[str, ...], shape: tuple[int, ...]) -> Any:
    return zip(axes, shape[len(shape) - len(axes) :], strict=True)


def check_mesh(mesh: Mesh, sharding: Sharding) -> None:
    """Refuse a mesh along which nothing is split.

    Raises:
        ConfigError: no axis of the mesh is one of the sharding.
    """
    wanted = [n for n in dataclasses.astuple(sharding) if n is not None]
    if not set(wanted) & set(mesh.axis_names):
        raise ConfigError(
            f"The mesh has the axes {list(mesh.axis_names)} and weights are split over "
            f"{sorted(set(wanted))}: name an axis of the mesh, for instance "
            f"Sharding(heads={mesh.axis_names[0]!r}, mlp={mesh.axis_names[0]!r})."
        )


def shard(model: Any, mesh: Mesh, sharding: Sharding | None = None) -> Any:
    """Spread the weights of a model over devices.

    The verbs run a sharded model as any other; XLA adds the communication.

    Args:
        model: a model, or any tree of arrays.
        mesh: the devices.
        sharding: `Sharding()` by default.

    Returns:
        The model, its arrays on the devices of the mesh.

    Raises:
        ConfigError: no axis of the mesh is one of the sharding.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_llama(jax.random.key(0))
        >>> mesh = jax.make_mesh((1,), ("model",))
        >>> mijax.models.shard(model, mesh).n_layers
        3
    """
    return put(model, placing(mesh, sharding))


def put(model: Any, place: Placing) -> Any:
    """Move every array of a model to where it belongs."""

    def one(path: Any, leaf: Any) -> Any:
        if not eqx.is_array(leaf):
            return leaf
        return jax.device_put(leaf, place(path_name(path), leaf.shape))

    return jax.tree_util.tree_map_with_path(one, model)


def placing(mesh: Mesh, sharding: Sharding | None) -> Placing:
    """Return the sharding of a weight as a function of its path and shape.

    Raises:
        ConfigError: no axis of the mesh is one of the sharding.
    """
    rules = Sharding() if sharding is None else sharding
    check_mesh(mesh, rules)
    # Explicit axes ask for the sharding of every result, which models do not state.
    types = (AxisType.Auto,) * len(mesh.axis_names)
    mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=types)
    return lambda name, shape: NamedSharding(mesh, rules.of(name, shape, mesh))
