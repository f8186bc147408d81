"""EAP with the gradient of GIM."""

import equinox as eqx
from jaxtyping import Array, Float, Int

from mijax import nn
from mijax.circuits._eap import EAP
from mijax.circuits._graph import Graph
from mijax.circuits._method import AbstractAttribution
from mijax.circuits._scores import Level
from mijax.circuits._task import Task
from mijax.core import AbstractModel


class GIM(AbstractAttribution):
    r"""EAP with the backward rules of GIM (Edin et al. 2025, arXiv:2505.17630).

    $(z_s - z_s^*)^\top g_r$ with $g_r$ the gradient of the clean run under `nn.GIM`:
    norms frozen, attention's softmax differentiated at a temperature, products sharing
    their gradient. The same as `EAP(rule=nn.GIM())`.

    Attributes:
        temperature: of the softmax gradient.
        level: `"edge"`, `"node"` or `"neuron"`.

    Raises:
        ConfigError: a model in which the rules match nothing.
    """

    temperature: float = eqx.field(static=True, default=2.0)
    level: Level = eqx.field(static=True, default="edge")

    def prepare(self, model: AbstractModel) -> AbstractModel:
        """Applies the backward rules."""
        return nn.GIM(self.temperature)(model)

    def attribute(
        self, model: AbstractModel, graph: Graph, task: Task, prompt: Int[Array, ""]
    ) -> Float[Array, "..."]:
        """Scores one prompt."""
        return EAP(level=self.level).attribute(model, graph, task, prompt)
