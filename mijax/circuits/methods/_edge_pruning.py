"""Edge pruning."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mijax._errors import ConfigError
from mijax.circuits._scores import Level
from mijax.circuits.forward._graph import Graph
from mijax.circuits.forward._stream import Gate
from mijax.circuits.methods._hard_concrete import SHIFT, sample
from mijax.circuits.methods._masks import AbstractMask, over_edges

START = 10.0
DECAY = 0.01
RISE = 1 / 15


class Gates(eqx.Module):
    """Gates and the multipliers that hold their sparsity.

    Attributes:
        log_alpha: parameter of each gate.
        multipliers: of the gap to the target, and of its square.
    """

    log_alpha: Float[Array, " gate"]
    multipliers: Float[Array, " 2"]


class EdgePruning(AbstractMask):
    r"""A mask of a given sparsity (Bhaskar et al. 2024, arXiv:2406.16778).

    Hard concrete gates $z$ on edges, and on what nodes write, are learned to minimise
    minus the metric under a constraint on the sparsity $s = 1 - \bar z$ of the step's
    draw, held by multipliers that ascend:

    $$\min_{\log\alpha} \max_{\lambda} \; -m(z) + \lambda_1 (s - t) +
      \lambda_2 (s - t)^2, \qquad t = t^* \min(1, i / w) \text{ at step } i.$$

    AdamW (decay 0.01) runs at one rate for gates and multipliers, which rises over the
    first fifteenth of the steps and falls to 0 at the end. The decay is what brings
    gates from 10, where they start, to where they have gradients: in 1,000 steps at a
    rate of 0.05 none closes, at 0.8 they do.

    All of this, and the defaults, is the authors' code for GPT-2. There, nodes have
    gates whose sparsity is left free, where here `node_sparsity=None` is no gates; and
    gates start with a little noise. The loss there is a divergence: give
    `negative(kl(logits))` as the task's metric. See `AbstractMask` for what scores
    mean; with gates on nodes an edge scores no more than its sender.

    Attributes:
        target_sparsity: $t^*$, share of edges to close; the authors also use targets
            above 1, since gates lag behind.
        node_sparsity: share of nodes to close; `None` gives nodes no gates.
        warm_up: $w$, steps until the target is $t^*$; five sixths of all by default.
        steps: updates.
        learning_rate: of AdamW at its peak, on log odds and multipliers.
        batch: prompts of each update.
        seed: of prompts and gates.

    Examples:
        >>> import mijax
        >>> from mijax import circuits
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> metric = mijax.logit_difference(3, 4)
        >>> task = circuits.Task([[5, 6, 7]], [[5, 9, 7]], metric=metric)
        >>> method = EdgePruning(0.9, steps=2)
        >>> circuits.discover(model, task, method).values.shape
        (16, 40)
    """

    target_sparsity: float = 0.97
    node_sparsity: float | None = None
    warm_up: int | None = eqx.field(static=True, default=None)
    steps: int = eqx.field(static=True, default=3000)
    learning_rate: float = 0.8
    batch: int = eqx.field(static=True, default=32)
    seed: int = 0
    level: Level = eqx.field(static=True, default="edge", init=False)

    def __check_init__(self):
        """Refuses targets that are no share."""
        for target in (self.target_sparsity, self.node_sparsity):
            if target is not None and not 0 <= target <= 1.5:
                raise ConfigError(f"A sparsity is a share of gates, got {target}.")

    def optimiser(self) -> optax.GradientTransformation:
        """Returns AdamW whose rate rises, then falls."""
        rise = max(1, round(self.steps * RISE))

        def rate(step: Any) -> Any:
            down = (self.steps - step) / max(1, self.steps - rise)
            return self.learning_rate * jnp.minimum(step / rise, down)

        return optax.adamw(rate, weight_decay=DECAY)

    def start(self, graph: Graph) -> dict[str, Gates]:
        """Starts with all gates open and no constraint."""
        sizes = {"edges": graph.n_edges}
        if self.node_sparsity is not None:
            sizes["nodes"] = len(graph.senders)
        return {
            kind: Gates(jnp.full(size, START, jnp.float32), jnp.zeros(2, jnp.float32))
            for kind, size in sizes.items()
        }

    def gate(
        self, params: Any, graph: Graph, key: PRNGKeyArray, lane: Int[Array, ""]
    ) -> Gate:
        """Draws the step's mask."""
        drawn = draw(params, key)
        edges = over_edges(graph, drawn["edges"])
        nodes = drawn["nodes"][:, None] if "nodes" in drawn else None
        return Gate(edges=edges, nodes=nodes)

    def penalty(
        self, params: Any, step: Int[Array, ""], key: PRNGKeyArray
    ) -> Float[Array, ""]:
        """Returns the constraints, of the mask that `gate` draws."""
        warm_up = self.steps * 5 // 6 if self.warm_up is None else self.warm_up
        reached = jnp.minimum(1.0, step / max(1, warm_up))
        targets = {"edges": self.target_sparsity, "nodes": self.node_sparsity}
        total = jnp.float32(0)
        for kind, drawn in draw(params, key).items():
            gap = 1 - drawn.mean() - reached * targets[kind]
            total += constraint(params[kind].multipliers, jnp.stack([gap, gap**2]))
        return total

    def log_odds(self, params: Any, graph: Graph) -> Float[Array, " gate"]:
        """Returns the log odds that each edge and its sender are open."""
        found = params["edges"].log_alpha
        if "nodes" in params:
            sender = graph.edges.nonzero()[0]
            found = jnp.minimum(found, params["nodes"].log_alpha[sender])
        return found + SHIFT


def draw(params: dict[str, Gates], key: PRNGKeyArray) -> dict[str, Array]:
    """Draws the gates of every kind."""
    keys = jax.random.split(key, len(params))
    return {
        kind: sample(params[kind].log_alpha, own)
        for kind, own in zip(sorted(params), keys, strict=True)
    }


def constraint(
    multipliers: Float[Array, " 2"], gaps: Float[Array, " 2"]
) -> Float[Array, ""]:
    """Returns the constraint; its gradient descends in the gaps, ascends elsewhere."""
    held = jax.lax.stop_gradient
    return held(multipliers) @ gaps - multipliers @ held(gaps)
