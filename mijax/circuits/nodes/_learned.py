"""A mask over nodes that is learned."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mijax import train
from mijax._errors import ConfigError
from mijax._progress import Progress
from mijax.circuits.methods._hard_concrete import (
    SHIFT,
    expected_l0,
    log_alpha_of,
    sample,
)
from mijax.circuits.methods._probing import START
from mijax.circuits.nodes._gated import MOST, example_bytes, mean_metric
from mijax.circuits.nodes._method import AbstractNodeMethod
from mijax.circuits.nodes._scores import NodeScores
from mijax.circuits.nodes._task import NodeTask
from mijax.data import AbstractSource


class NodeProbing(AbstractNodeMethod):
    r"""A learned mask over nodes: subnetwork probing (Cao et al. 2021).

    Hard concrete gates $z(\log\alpha)$ are learned with Adam to minimize

    $$-\mathbb{E}_z[m(z)] + \frac{\lambda}{N} \sum_{i=1}^N P(z_i \neq 0)$$

    (arXiv:2104.03514), one mask for all examples of a step. The score of a node is
    $-\log P(z = 0)$, in nats: near 0 for nodes that the mask closes, large for those
    that it keeps; `scores.above(math.log(2))` are those that are more likely open.

    Attributes:
        regularization: $\lambda$, in units of the metric.
        steps: updates.
        learning_rate: of Adam, on the log odds.
        batch: examples of each update, drawn without replacement; all if there are
            fewer.
        seed: of examples and gates.
    """

    regularization: float = 1.0
    steps: int = eqx.field(static=True, default=1000)
    learning_rate: float = 0.02
    batch: int = eqx.field(static=True, default=50)
    seed: int = 0

    def __check_init__(self):
        """Refuse to learn from nothing."""
        if self.steps < 1 or self.batch < 1:
            raise ConfigError(
                f"Learning takes at least 1 step and 1 example, got {self.steps} steps "
                f"of {self.batch} examples."
            )

    def discover(self, task: NodeTask, progress: Progress, memory: int) -> NodeScores:
        """Learn the mask."""
        # A backward pass keeps what a forward pass frees.
        chunk = min(MOST, max(1, memory // (4 * example_bytes(task))))
        seed = jnp.int32(self.seed)
        numbers = (jnp.float32(self.regularization), jnp.float32(self.learning_rate))
        state = train.fit(
            _Objective(*eqx.partition(task, eqx.is_array), *numbers, seed, chunk),
            _Examples(seed, len(task), min(self.batch, len(task))),
            steps=self.steps,
            report=self.steps,
            every=self.steps,
            progress=progress or False,
        )
        values = np.asarray(jax.nn.softplus(state.params + SHIFT))
        return NodeScores(values, None, task.nodes, repr(self))


class _Objective(train.AbstractObjective):
    """Minus the metric under a drawn mask, plus the expected fraction of open gates."""

    arrays: NodeTask
    static: NodeTask = eqx.field(static=True)
    regularization: Float[Array, ""]
    learning_rate: Float[Array, ""]
    seed: Int[Array, ""]
    chunk: int = eqx.field(static=True)

    def key(self) -> PRNGKeyArray:
        """Return the key of the seed."""
        return jax.random.key(self.seed)

    def start(self, key: PRNGKeyArray) -> tuple[Float[Array, " node"], None]:
        """Start with all gates nearly open."""
        return jnp.full(len(self.static.nodes), log_alpha_of(START), jnp.float32), None

    def loss(
        self, params: Any, memory: None, batch: Any, step: train.Step
    ) -> tuple[Float[Array, ""], tuple[dict[str, Array], None]]:
        """Return the loss of one mask on some examples."""
        gates = sample(params, step.key)
        task = eqx.combine(self.arrays, self.static)
        metric = mean_metric(task, gates, batch, self.chunk)
        fraction = expected_l0(params).mean()
        return self.regularization * fraction - metric, (
            {"metric": metric, "open": fraction},
            None,
        )

    def optimiser(self) -> optax.GradientTransformation:
        """Return Adam."""
        return optax.adam(self.learning_rate)


class _Examples(AbstractSource):
    """Indices of examples, drawn without replacement."""

    seed: Int[Array, ""]
    n: int = eqx.field(static=True)
    size: int = eqx.field(static=True)

    def start(self) -> Any:
        """Return the key of the first draw."""
        return jax.random.fold_in(jax.random.key(self.seed), 1)

    @eqx.filter_jit
    def batch(self, state: Any) -> tuple[Any, Int[Array, " example"]]:
        """Draw the indices of a batch."""
        state, draw = jax.random.split(state)
        return state, jax.random.choice(draw, self.n, (self.size,), replace=False)
