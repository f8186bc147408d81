"""The score of one output: metrics of logits, and functions of any output."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mijax._errors import ShapeError, quoted
from mijax.core._metric import AbstractMetric

Metric = AbstractMetric | Callable[..., Any]
# A metric, or several by name.
Metrics = Metric | Mapping[str, Metric]


def score(
    metric: Any,
    output: Any,
    example: Any,
    prompt: Any,
    seen: tuple[Array, ...] = (),
) -> Float[Array, ""]:
    """Return the metric of one example.

    Args:
        metric: an `AbstractMetric` for logits, `[class]` or `[position, vocab]`, or a
            function `(output)` or `(output, example)`.
        output: what the model returns for the example.
        example: the example, the inputs of the model.
        prompt: which example of the batch it is, `None` without a batch.
        seen: activations that a metric of activations looks at.

    Returns:
        The metric.

    Raises:
        ShapeError: a metric of another kind, or one that does not return a scalar.
    """
    if isinstance(metric, AbstractMetric) and seen:
        return metric.score_seen(output, seen, prompt)
    if isinstance(metric, AbstractMetric):
        if getattr(output, "ndim", None) not in (1, 2):
            raise ShapeError(
                f"{type(metric).__name__} reads logits, [class] or [position, vocab]; "
                f"the output is {_shapes(output)}: give a function of the output."
            )
        return metric.of(output, prompt)
    found = metric(output, example) if _takes_two(metric) else metric(output)
    value = jnp.asarray(found) if jax.tree.leaves(found) == [found] else None
    if value is None or value.shape != ():
        raise ShapeError(
            f"A metric returns one number for one example; {_name(metric)} returned "
            f"{_shapes(found)}."
        )
    return value


def check_scores(metrics: Any) -> None:
    """Refuse what is neither a metric nor several by name.

    Raises:
        ShapeError: something else.
    """
    for one in metrics.values() if isinstance(metrics, Mapping) else (metrics,):
        if not isinstance(one, AbstractMetric) and not callable(one):
            raise ShapeError(
                "Expected a metric such as mijax.logit_difference(answer, wrong), or a "
                f"function of the model's output, got {quoted(one)}."
            )


def looks_of(metrics: Any) -> tuple[Any, ...]:
    """Return the metrics of activations among one or several metrics, in order."""
    each = metrics.values() if isinstance(metrics, Mapping) else (metrics,)
    own = (one for one in each if isinstance(one, AbstractMetric))
    return tuple(look for one in own for look in one.looks())


def scores(
    metrics: Any, output: Any, example: Any, prompt: Any, seen: tuple[Any, ...] = ()
) -> Any:
    """Return the metric of one example, or each of several by name."""
    if not isinstance(metrics, Mapping):
        return score(metrics, output, example, prompt, seen)
    found, at = {}, 0
    for name, one in metrics.items():
        count = len(looks_of(one))
        own = seen[at : at + count]
        found[name] = score(one, output, example, prompt, own)
        at += count
    return found


def _takes_two(metric: Callable[..., Any]) -> bool:
    """Return True if a function has a second positional parameter without default."""
    try:
        parameters = inspect.signature(metric).parameters.values()
    except (TypeError, ValueError):
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters if p.kind in kinds and p.default is p.empty]
    return len(needed) > 1


def _name(metric: Any) -> str:
    return getattr(metric, "__name__", type(metric).__name__)


def _shapes(tree: Any) -> str:
    leaves = jax.tree.leaves(tree)
    arrays = [leaf for leaf in leaves if hasattr(leaf, "shape")]
    if len(arrays) < len(leaves) or not leaves:
        return quoted(tree)
    return ", ".join(f"{a.dtype}{list(a.shape)}" for a in arrays)
