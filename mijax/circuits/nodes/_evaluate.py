"""Faithfulness and completeness of circuits of nodes."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Bool, Float, Int

from mijax._errors import ConfigError
from mijax._progress import Progress, reports
from mijax.circuits._method import MEMORY
from mijax.circuits.evaluation._areas import check_ends, ratio
from mijax.circuits.nodes._circuit import NodeCircuit, mask_of
from mijax.circuits.nodes._gated import run_masks
from mijax.circuits.nodes._task import NodeTask
from mijax.core import Interval
from mijax.core.internal import checked


class NodeEvaluation(eqx.Module):
    r"""Faithfulness and completeness of circuits of nodes.

    With means over examples, the model $M$ and the circuit without nodes $\emptyset$
    (Marks et al. 2024, arXiv:2403.19647):

    $$\mathrm{faithfulness}(C) = \frac{\bar m(C) - \bar m(\emptyset)}
    {\bar m(M) - \bar m(\emptyset)}, \quad
    \mathrm{completeness}(C) = \mathrm{faithfulness}(M \setminus C).$$

    A circuit that explains all of the metric has faithfulness 1 and completeness 0.
    Intervals are percentiles of the bootstrap over examples.

    Attributes:
        sizes: number of nodes of each circuit.
        metric: of each circuit in each example.
        complement: metric of each circuit's complement.
        full: metric of the model in each example.
        empty: metric with every node replaced.
    """

    sizes: Int[np.ndarray, " circuit"]
    metric: Float[np.ndarray, "circuit example"]
    complement: Float[np.ndarray, "circuit example"]
    full: Float[np.ndarray, " example"]
    empty: Float[np.ndarray, " example"]

    def __check_init__(self):
        """Refuse a metric that the nodes do not move."""
        check_ends(self.full, self.empty, "nodes")

    @property
    def faithfulness(self) -> Interval:
        """Fraction of the metric that each circuit keeps, `[circuit]`."""
        return ratio(self.metric, self.full, self.empty)

    @property
    def completeness(self) -> Interval:
        """Fraction of the metric that the rest of the model keeps, `[circuit]`."""
        return ratio(self.complement, self.full, self.empty)

    def __str__(self) -> str:
        columns = (self.sizes, self.faithfulness.mean, self.completeness.mean)
        lines = [f"{'nodes':>8}  faithfulness  completeness"]
        for size, kept, rest in zip(*columns, strict=True):
            lines.append(f"{size:>8}  {float(kept):>12.3f}  {float(rest):>12.3f}")
        return "\n".join(lines)


@reports("Run circuits of nodes")
@checked
def run_nodes(
    task: NodeTask,
    circuits: NodeCircuit | Sequence[NodeCircuit],
    *,
    progress: Progress = None,
    memory: int = MEMORY,
) -> Float[np.ndarray, "circuit example"]:
    """Measure circuits: every node outside is replaced.

    A node inside the circuit is computed from what is left of its inputs. The mask is
    data: circuits of any size run in one compiled program, equal ones once.

    Args:
        task: model, inputs, metric and nodes.
        circuits: one circuit, or several.
        progress: called with the runs that are done and their total; `None` draws a
            bar after three seconds in a terminal or notebook, `False` none.
        memory: bytes of working memory to aim at.

    Returns:
        The metric of every circuit in every example.

    Raises:
        ShapeError: a circuit of other nodes.
        ConfigError: no circuit.

    Examples:
        >>> import jax, mijax
        >>> from mijax import circuits
        >>> relu = lambda x: mijax.site("relu", jax.nn.relu(x), "neuron")
        >>> task = circuits.NodeTask(
        ...     mijax.model(lambda x: relu(x)[0] + 3 * relu(x)[1], jax.numpy.ones(4)),
        ...     jax.numpy.ones((2, 4)),
        ...     metric=lambda output: output,
        ...     nodes={"relu": "neuron"},
        ...     ablation=mijax.Zero(),
        ... )
        >>> circuit = circuits.NodeCircuit.of(task, ["relu[1]"])
        >>> circuits.run_nodes(task, [circuit, ~circuit]).tolist()
        [[3.0, 3.0], [1.0, 1.0]]
    """
    return run_masks(task, masks_of(task, circuits), progress=progress, memory=memory)


@reports("Evaluate circuits of nodes")
@checked
def evaluate_nodes(
    task: NodeTask,
    circuits: NodeCircuit | Sequence[NodeCircuit],
    *,
    progress: Progress = None,
    memory: int = MEMORY,
) -> NodeEvaluation:
    """Measure faithfulness and completeness of circuits of any size, in one program.

    Args:
        task: model, inputs, metric and nodes. Other inputs than those that the circuits
            were found on tell how well they generalize.
        circuits: one circuit, or several, for instance
            `[scores.top(n) for n in (1, 10, 100)]`.
        progress: called with the runs that are done and their total; `None` draws a
            bar after three seconds in a terminal or notebook, `False` none.
        memory: bytes of working memory to aim at.

    Returns:
        Both for each circuit, with intervals over examples.

    Raises:
        ShapeError: a circuit of other nodes.
        ConfigError: no circuit, or a metric that is the same with all nodes and with
            none.

    Examples:
        >>> import jax, mijax
        >>> from mijax import circuits
        >>> relu = lambda x: mijax.site("relu", jax.nn.relu(x), "neuron")
        >>> task = circuits.NodeTask(
        ...     mijax.model(lambda x: relu(x)[0] + 3 * relu(x)[1], jax.numpy.ones(4)),
        ...     jax.numpy.ones((2, 4)),
        ...     metric=lambda output: output,
        ...     nodes={"relu": "neuron"},
        ...     ablation=mijax.Zero(),
        ... )
        >>> scores = circuits.discover_nodes(task, circuits.NodeExact())
        >>> print(circuits.evaluate_nodes(task, [scores.top(n) for n in (1, 2)]))
           nodes  faithfulness  completeness
               1         0.750         0.250
               2         1.000         0.000
    """
    masks = masks_of(task, circuits)
    ends = np.ones((1, len(task.nodes)), bool)
    every = np.concatenate([masks, ~masks, ends, ~ends])
    found = run_masks(task, every, progress=progress, memory=memory)
    n = len(masks)
    return NodeEvaluation(masks.sum(1), found[:n], found[n : 2 * n], *found[2 * n :])


def masks_of(task: NodeTask, circuits: Any) -> Bool[np.ndarray, "circuit node"]:
    """Return the masks of one circuit or several.

    Raises:
        ConfigError: none.
    """
    found = [circuits] if isinstance(circuits, NodeCircuit) else list(circuits)
    if not found:
        raise ConfigError("Give a circuit of nodes, or several; got none.")
    return np.stack([mask_of(task.nodes, one) for one in found])
