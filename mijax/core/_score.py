"""The score of one output: metrics of logits, and functions of any output."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mijax._errors import ShapeError, quoted
from mijax.core._metric import AbstractMetric
from mijax.core._traced import bounds_of_metric, guarded

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


def check_scores(metric: Any) -> None:
    """Refuse what is not a metric.

    Raises:
        ShapeError: something else.
    """
    if not isinstance(metric, AbstractMetric) and not callable(metric):
        raise ShapeError(
            "Expected a metric such as mijax.logit_difference(answer, wrong), or a "
            f"function of the model's output, got {quoted(metric)}."
        )


def checked_scores(
    metric: Any, shape: tuple[int, ...] | None, batch: int | None
) -> Any:
    """Return a metric that fits the outputs of a function.

    Args:
        metric: a metric, or a function of the output.
        shape: shape of the output for one example, if it is one array.
        batch: number of examples, `None` for one without a batch.

    Returns:
        The metric; with checks on, traced operands out of range raise.

    Raises:
        ShapeError: no metric, operands for another number of examples, or a class that
            the output does not have.
        PositionError: a position that the output does not have.
    """
    check_scores(metric)
    logits = isinstance(metric, AbstractMetric) and not metric.looks()
    if not logits or shape is None or len(shape) not in (1, 2):
        return metric
    seq, vocab = (1, *shape)[-2:]
    metric.check(1 if batch is None else batch, seq=seq)
    metric.check_tokens(vocab)
    return guarded(metric, bounds_of_metric(metric, seq, vocab))


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
