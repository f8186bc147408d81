"""Attribution patching, and gradients integrated over the input."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from mijax._errors import ConfigError, nearest
from mijax.attribution._method import AbstractMethod, Rule
from mijax.core import AbstractMetric, AbstractModel, Patch, Site, capture, gradients
from mijax.core.internal import TokensLike

RUNS = ("clean", "corrupt")


class AtP(AbstractMethod):
    r"""Attribution patching (Nanda 2023): gradient times difference, summed.

    $(a - a^*)^\top \partial m / \partial a$, the first-order estimate of what the
    metric loses when the clean activation $a$ becomes the corrupt one $a^*$.

    Attributes:
        at: the run whose gradient is taken. `"clean"` estimates patching corrupt
            activations into the clean run, `m(clean) - m(patched)`; `"corrupt"` the
            other direction, `m(patched) - m(corrupt)`.
        rule: a backward rule, `model -> model`, for instance `nn.GIM()`; `None` is the
            plain gradient.

    Raises:
        ConfigError: another run than these.

    Examples:
        >>> from mijax import nn
        >>> AtP(rule=nn.GIM())
        AtP(rule=GIM())
    """

    at: str = eqx.field(static=True, default="clean")
    rule: Rule | None = None

    def __check_init__(self):
        """Refuses a run that does not exist."""
        if self.at not in RUNS:
            raise ConfigError(f"There is no run {self.at!r}.{nearest(self.at, RUNS)}")

    def scores(
        self,
        model: AbstractModel,
        clean: TokensLike,
        corrupt: TokensLike,
        metric: AbstractMetric,
        sites: Any,
    ) -> Any:
        """Runs both prompts forward and one of them backward."""
        ruled = model if self.rule is None else self.rule(model)
        at = clean if self.at == "clean" else corrupt
        gradient = gradients(ruled, at, metric, sites)
        return product(difference(model, clean, corrupt, sites), gradient)


class IntegratedGradients(AbstractMethod):
    r"""Gradients averaged over a path of inputs, times difference, summed.

    The embedding goes from that of the corrupt prompt to that of the clean one in a
    straight line; `steps` gradients are taken at the middles of equal parts of it
    (Sundararajan et al. 2017, arXiv:1703.01365). At `embed` the scores add up to
    $m(\mathrm{clean}) - m(\mathrm{corrupt})$, with an error that falls as
    $1/\mathrm{steps}^2$; at other sites the same gradients multiply the difference
    there, as in Hanna et al. 2024, arXiv:2403.17806.

    Attributes:
        steps: points on the path.
        rule: a backward rule, `model -> model`; `None` is the plain gradient.

    Raises:
        ConfigError: no steps.

    Examples:
        >>> import mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> clean, corrupt = [5, 6, 7], [5, 9, 7]
        >>> metric = mijax.logit_difference(3, 4)
        >>> scores = mijax.attribution.attribute(
        ...     *(model, clean, corrupt, metric, Site("embed")),
        ...     method=IntegratedGradients(30),
        ... )
        >>> lost = metric(mijax.run(model, clean)) - metric(mijax.run(model, corrupt))
        >>> bool(abs(scores.sum() - lost) < 0.01)
        True
    """

    steps: int = eqx.field(static=True, default=10)
    rule: Rule | None = None

    def __check_init__(self):
        """Refuses a path without points."""
        if self.steps < 1:
            raise ConfigError(f"A path has at least one point, got {self.steps}.")

    def scores(
        self,
        model: AbstractModel,
        clean: TokensLike,
        corrupt: TokensLike,
        metric: AbstractMetric,
        sites: Any,
    ) -> Any:
        """Takes one gradient per step, all by one program."""
        ruled = model if self.rule is None else self.rule(model)
        end, start = (capture(model, t, Site("embed")) for t in (clean, corrupt))
        total = None
        for step in range(self.steps):
            between = start + (step + 0.5) / self.steps * (end - start)
            edits = Patch(between).at("embed")
            found = gradients(ruled, clean, metric, sites, edits)
            total = found if total is None else jax.tree.map(jnp.add, total, found)
        gradient = jax.tree.map(lambda g: g / self.steps, total)
        return product(difference(model, clean, corrupt, sites), gradient)


def difference(
    model: AbstractModel,
    clean: TokensLike,
    corrupt: TokensLike,
    sites: Any,
) -> Any:
    """Returns clean minus corrupt activations at all sites."""
    both = (capture(model, tokens, sites) for tokens in (clean, corrupt))
    return jax.tree.map(jnp.subtract, *both)


def product(difference: Any, gradient: Any) -> Any:
    """Multiplies and sums over the last axis."""
    return jax.tree.map(lambda d, g: (d * g).sum(-1), difference, gradient)
