"""Uniform gradient sampling."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from mijax.circuits._scores import Level
from mijax.circuits.forward._graph import Graph
from mijax.circuits.forward._stream import Gate
from mijax.circuits.methods._masks import AbstractMask, gate_of, n_gates

START = 1.0
CLIP = 5.0


class UGS(AbstractMask):
    r"""Uniform gradient sampling (Li and Janson 2024, arXiv:2409.09951).

    Every gate has a chance $\theta = \sigma(\phi)$ of being open. It is drawn as a coin
    most of the time, and uniformly with probability $w = \theta(1 - \theta)$:

    $$\alpha = \mathrm{clip}\left(\frac{\theta - u}{w} + \frac12, 0, 1\right),
      \qquad u \sim U(0, 1),$$

    so that $P(\alpha = 1) = \theta - w/2$, $P(\alpha = 0) = 1 - \theta - w/2$ and
    $E[\alpha] = \theta$. With $w$ held constant, $\partial\alpha / \partial\phi$ is 1
    where $\alpha$ was drawn uniformly and 0 elsewhere, and

    $$E\left[\frac{\partial L}{\partial\alpha} \frac{\partial\alpha}{\partial\phi}
      \right] = \theta(1-\theta) \int_0^1 \frac{\partial L}{\partial\alpha} d\alpha
      = \frac{\partial\theta}{\partial\phi} (L_{\alpha=1} - L_{\alpha=0})$$

    is the exact gradient for a coin, the other gates given. What is minimised is
    $-E_\alpha[m(\alpha)] + \lambda \sum_i \theta_i$: a gate stays open if closing it
    costs more than $\lambda$. Each prompt is run under `samples` masks of its own.

    Sampling, start ($\phi = 1$), AdamW without decay, its $\beta_2$ of 0.995 and
    clipping at 5 are those of the authors' code, the rest of the defaults those of
    Mueller et al. 2025 (arXiv:2504.13151) for counterfactual ablation. Not taken over
    from that code: its gradient has one more factor $w$, it adds a penalty on nodes,
    and it closes the edges of a draw that lead nowhere. Its loss is a divergence:
    `negative(kl(logits))` as the task's metric. See `AbstractMask` for what scores
    mean.

    Attributes:
        regularisation: $\lambda$, in units of the metric per edge or node.
        level: `"edge"` or `"node"`.
        samples: masks of each prompt.
        steps: updates.
        learning_rate: of Adam, on $\phi$.
        batch: prompts of each update.
        seed: of prompts and gates.

    Examples:
        >>> import mijax
        >>> from mijax import circuits
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> metric = mijax.logit_difference(3, 4)
        >>> task = circuits.Task([[5, 6, 7]], [[5, 9, 7]], metric=metric)
        >>> circuits.discover(model, task, UGS(steps=2)).values.shape
        (16, 40)
    """

    regularisation: float = 1e-3
    level: Level = eqx.field(static=True, default="edge")
    samples: int = eqx.field(static=True, default=12)
    steps: int = eqx.field(static=True, default=2000)
    learning_rate: float = 1e-2
    batch: int = eqx.field(static=True, default=5)
    seed: int = 0

    def optimiser(self) -> optax.GradientTransformation:
        """Returns Adam on clipped gradients."""
        adam = optax.adam(self.learning_rate, b2=0.995)
        return optax.chain(optax.clip_by_global_norm(CLIP), adam)

    def lanes(self, graph: Graph) -> int:
        """Runs each prompt under as many masks."""
        return self.samples

    def start(self, graph: Graph) -> Float[Array, " gate"]:
        """Starts with gates that are more open than closed."""
        return jnp.full(n_gates(graph, self.level), START, jnp.float32)

    def gate(
        self, params: Any, graph: Graph, key: PRNGKeyArray, lane: Int[Array, ""]
    ) -> Gate:
        """Draws a mask for this lane alone."""
        return gate_of(graph, self.level, draw(params, jax.random.fold_in(key, lane)))

    def penalty(
        self, params: Any, step: Int[Array, ""], key: PRNGKeyArray
    ) -> Float[Array, ""]:
        """Returns the expected number of open gates, weighted."""
        return self.regularisation * jax.nn.sigmoid(params).sum()

    def log_odds(self, params: Any, graph: Graph) -> Float[Array, " gate"]:
        """Returns the log odds that each gate is open."""
        return params


def draw(phi: Float[Array, " gate"], key: PRNGKeyArray) -> Float[Array, " gate"]:
    """Draws every gate once, as a coin or uniformly."""
    theta = jax.nn.sigmoid(phi)
    width = jax.lax.stop_gradient(theta * (1 - theta))
    u = jax.random.uniform(key, phi.shape, phi.dtype)
    return jnp.clip((theta - u) / width + 0.5, 0, 1)
