"""Meshes of devices, and sums over them from inside a loss."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, PRNGKeyArray

from mijax._errors import ConfigError

DATA, MODEL = "data", "model"


def mesh(*, data: int = 1, model: int = 1) -> Mesh:
    """Lays devices out for training: examples over `data`, parameters over `model`.

    Args:
        data: how many groups share the examples of a batch.
        model: over how many devices each copy of the parameters is split.

    Returns:
        The mesh, of the first `data * model` devices.

    Raises:
        ConfigError: there are fewer devices.

    Examples:
        >>> mesh(data=1, model=1).shape["model"]
        1
    """
    devices = jax.devices()
    if data < 1 or model < 1 or data * model > len(devices):
        raise ConfigError(
            f"A mesh of {data} x {model} needs {data * model} devices and there are "
            f"{len(devices)}: give smaller axes."
        )
    return Mesh(
        np.array(devices[: data * model]).reshape(data, model),
        (DATA, MODEL),
        axis_types=(jax.sharding.AxisType.Auto,) * 2,
    )


class Step(eqx.Module):
    """Where training is, and how a loss speaks to the other devices.

    Attributes:
        index: updates done before this one.
        key: of this update, the same on every device.
        data: whether examples are split over devices.
        model: whether parameters are.
    """

    index: Int[Array, ""]
    key: PRNGKeyArray
    data: bool = eqx.field(static=True, default=False)
    model: bool = eqx.field(static=True, default=False)

    def local(self, x: Any) -> Any:
        """Marks parameters as used on this device's examples; gradients add up."""
        if not self.data:
            return x
        return jax.tree.map(lambda a: jax.lax.pcast(a, DATA, to="varying"), x)

    def mean(self, x: Any) -> Any:
        """Averages over the devices that share the examples."""
        return jax.lax.pmean(x, DATA) if self.data else x

    def total(self, x: Any) -> Any:
        """Adds up over the devices that share the examples."""
        return jax.lax.psum(x, DATA) if self.data else x

    def over_model(self, x: Any) -> Any:
        """Adds up over the devices that share the parameters."""
        return jax.lax.psum(x, MODEL) if self.model else x

    def gather(self, x: Array) -> Array:
        """Stacks what every device that shares the parameters has, `[device, ...]`."""
        return jax.lax.all_gather(x, MODEL) if self.model else x[None]

    def part(self) -> Int[Array, ""]:
        """Returns which part of the parameters this device has."""
        return jax.lax.axis_index(MODEL) if self.model else jnp.int32(0)
