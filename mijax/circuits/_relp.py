"""EAP with the gradient of relevance patching."""

import equinox as eqx
from jaxtyping import Array, Float, Int

from mijax import nn
from mijax.circuits._eap import EAP
from mijax.circuits._graph import Graph
from mijax.circuits._method import AbstractAttribution
from mijax.circuits._scores import Level
from mijax.circuits._task import Task
from mijax.core import AbstractModel


class RelP(AbstractAttribution):
    r"""EAP with the rules of relevance patching (Jafari et al. 2025, arXiv:2508.21258).

    $(z_s - z_s^*)^\top g_r$ with $g_r$ the gradient of the clean run under `nn.RelP`:
    norms frozen, activations as secants, gates halved. The same as
    `EAP(rule=nn.RelP())`.

    Attributes:
        freeze_pattern: also stop the gradient at attention patterns (AH-rule); edges
            into queries and keys then score 0.
        level: `"edge"`, `"node"` or `"neuron"`.

    Raises:
        ConfigError: a model in which the rules match nothing.
    """

    freeze_pattern: bool = eqx.field(static=True, default=False)
    level: Level = eqx.field(static=True, default="edge")

    def prepare(self, model: AbstractModel) -> AbstractModel:
        """Applies the backward rules."""
        return nn.RelP(self.freeze_pattern)(model)

    def attribute(
        self, model: AbstractModel, graph: Graph, task: Task, prompt: Int[Array, ""]
    ) -> Float[Array, "..."]:
        """Scores one prompt."""
        return EAP(level=self.level).attribute(model, graph, task, prompt)
