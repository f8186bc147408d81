"""Edge attribution patching, and its integrated-gradient forms."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mijax._errors import ConfigError, nearest
from mijax.circuits._method import AbstractAttribution
from mijax.circuits._scores import Level
from mijax.circuits._task import Task, enter_clean
from mijax.circuits.forward._connected import connected
from mijax.circuits.forward._graph import Graph
from mijax.circuits.forward._streams import Model
from mijax.circuits.methods._gradients import attributed, gradients

# From a model to the same with other backward rules, such as `nn.GIM()`.
Rule = Callable[[Any], Any]
GRIDS = ("left", "right", "ends")


class EAP(AbstractAttribution):
    r"""Edge attribution patching (Syed et al. 2023, arXiv:2310.10348).

    The score of an edge is the first-order estimate of what the metric loses,
    $(z_s - z_s^*)^\top \partial m / \partial x_r$, with gradients of the clean run. At
    level `"node"` it is node attribution patching (NAP).

    Attributes:
        level: `"edge"`, `"node"` or `"neuron"`.
        rule: a backward rule, `model -> model`; `None` is the plain gradient.
    """

    level: Level = eqx.field(static=True, default="edge")
    rule: Rule | None = None

    def prepare(self, model: Model) -> Model:
        """Applies the backward rule."""
        return model if self.rule is None else self.rule(model)

    def attribute(
        self, model: Model, graph: Graph, task: Task, prompt: Int[Array, ""]
    ) -> Float[Array, "..."]:
        """Scores one prompt."""
        reference = task.ablation.reference(model, graph, task, prompt)
        inputs = enter_clean(model, graph, task, prompt)
        gradient, ran = gradients(model, graph, task, inputs, prompt, level=self.level)
        return attributed(graph, self.level, ran.senders - reference, gradient)


class EAPIG(AbstractAttribution):
    r"""EAP with gradients integrated over the input (Hanna et al. 2024).

    Gradients are averaged over runs whose input senders write
    $z^* + \alpha (z - z^*)$ (arXiv:2403.17806). The published grids differ by level
    and are the defaults: $\alpha = k/m$ for $k = 0, \dots, m-1$ at edges (`"left"`)
    and $k = 1, \dots, m$ at nodes and neurons (`"right"`). `"ends"` takes the clean
    and the corrupt run alone (the "clean-corrupted" method).

    Attributes:
        steps: points on the path.
        grid: `"left"`, `"right"` or `"ends"`; `None` is the published one.
        level: `"edge"`, `"node"` or `"neuron"`.
        rule: a backward rule, `model -> model`; `None` is the plain gradient.
    """

    steps: int = eqx.field(static=True, default=5)
    grid: str | None = eqx.field(static=True, default=None)
    level: Level = eqx.field(static=True, default="edge")
    rule: Rule | None = None

    def __check_init__(self):
        """Refuses a grid that does not exist and a path without points."""
        if self.grid is not None and self.grid not in GRIDS:
            close = nearest(self.grid, GRIDS)
            raise ConfigError(f"There is no grid {self.grid!r}.{close}")
        if self.steps < 1:
            raise ConfigError(f"A path has at least one point, got {self.steps}.")

    def alphas(self) -> Float[Array, " point"]:
        """Returns the points of the path."""
        grid = self.grid or ("left" if self.level == "edge" else "right")
        if grid == "ends":
            return jnp.array([0.0, 1.0])
        return (jnp.arange(self.steps) + (grid == "right")) / self.steps

    def prepare(self, model: Model) -> Model:
        """Applies the backward rule."""
        return model if self.rule is None else self.rule(model)

    def attribute(
        self, model: Model, graph: Graph, task: Task, prompt: Int[Array, ""]
    ) -> Float[Array, "..."]:
        """Scores one prompt."""
        reference = task.ablation.reference(model, graph, task, prompt)
        inputs = enter_clean(model, graph, task, prompt)
        start = reference[: len(graph.inputs)]
        clean = connected(model, graph, inputs, prompt=prompt).senders

        def point(alpha: Array) -> Array:
            between = start + alpha * (inputs.senders - start)
            between = replace(inputs, senders=between.astype(inputs.senders.dtype))
            return gradients(model, graph, task, between, prompt, level=self.level)[0]

        gradient = average(point, self.alphas())
        return attributed(graph, self.level, clean - reference, gradient)


def average(point: Callable[[Any], Array], points: Any) -> Array:
    """Averages a function over points, one at a time, in float32 at least."""
    zero = jax.eval_shape(point, jax.tree.map(lambda a: a[0], points))
    total = jnp.zeros(zero.shape, jnp.promote_types(zero.dtype, jnp.float32))

    def add(total: Array, at: Any) -> tuple[Array, None]:
        return total + point(at), None

    total, _ = jax.lax.scan(add, total, points)
    return total / jax.tree.leaves(points)[0].shape[0]
