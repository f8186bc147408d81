"""Attention knockout: stop tokens in one span from attending to another span."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mijax._errors import PositionError
from mijax._progress import Progress
from mijax.causal._tracing import Restore
from mijax.core import (
    AbstractEdit,
    Chunks,
    PerPrompt,
    Sweep,
    probability,
    sweep,
)
from mijax.core.internal import ModelLike, check_per_prompt, checked, opened
from mijax.data import Prompts


def as_operand(index: Any) -> Any:
    """Return an index as an array."""
    if isinstance(index, PerPrompt):
        return PerPrompt(jnp.asarray(index.values, jnp.int32))
    return jnp.asarray(index, jnp.int32)


class BlockKeys(AbstractEdit):
    """Edit of `scores` that blocks attention to the keys in a span.

    Their scores become the lowest finite number, so a query without any other key
    attends to all of them equally.

    Attributes:
        start: first blocked position, an integer or `PerPrompt`.
        stop: one past the last blocked position.

    Examples:
        >>> import jax, jax.numpy as jnp, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> edit = BlockKeys(1, 3).at("scores", position=3)
        >>> pattern = mijax.capture(model, jnp.arange(4), "pattern", edit)
        >>> float(pattern[:, 3, :, 1:3].max())
        0.0
    """

    start: Any = eqx.field(converter=as_operand)
    stop: Any = eqx.field(converter=as_operand)

    def check_operand(self, spec: Any, rows: range, batch: tuple[int, ...]) -> None:
        """Raise if the spans are for other prompts."""
        check_per_prompt(self.start, "start", batch)
        check_per_prompt(self.stop, "stop", batch)

    def __call__(self, x: Float[Array, "rows heads key"], place: Any) -> Array:
        """Return scores with the span blocked."""
        key = jnp.arange(x.shape[-1])
        blocked = (key >= place.each(self.start, x)) & (key < place.each(self.stop, x))
        return jnp.where(blocked, jnp.finfo(x.dtype).min, x)


@checked
def attention_knockout(
    model: ModelLike,
    prompts: Prompts,
    *,
    source: str,
    target: str,
    answer: Any,
    width: int = 9,
    progress: Progress = None,
    chunks: Chunks | None = None,
) -> Sweep:
    """Stop one span from attending to another, in a window around each layer in turn.

    Geva et al. 2023, "Dissecting Recall of Factual Associations" (arXiv:2304.14767).
    As a control, use another source of the same size.

    Args:
        model: any `AbstractModel`, or a language model (`mijax.models.load(...)`).
        prompts: prompts with both places.
        source: name of the blocked place, such as `"subject"`.
        target: name of the place that can no longer attend to it, such as `"last"`.
        answer: token whose probability is measured, one or one per prompt.
        width: number of layers in the window around each layer.
        progress: as in `sweep`.
        chunks: as in `sweep`.

    Returns:
        The probability of the answer, `[prompt, layer]`, and in the unedited run.

    Raises:
        PositionError: a place that the prompts do not have, or a target that does not
            come after the source.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> prompts = mijax.data.Prompts.from_ids(
        ...     [[5, 6, 7, 8]], spans={"subject": [(1, 3)]}
        ... )
        >>> cut = {"source": "subject", "target": "last", "answer": 9}
        >>> attention_knockout(model, prompts, **cut).values.shape
        (1, 3)
    """
    model = opened(model, prompts)[0]
    start, stop = prompts.find(source)
    queries = prompts.find(target)
    early = np.flatnonzero(np.asarray(queries[0]) < np.asarray(stop))
    if early.size:
        raise PositionError(
            f"In prompt {early[0]}, {target!r} begins before {source!r} ends: tokens "
            "attend only to earlier ones."
        )
    edit = BlockKeys(PerPrompt(start), PerPrompt(stop))
    return sweep(
        model,
        prompts,
        edit.at("scores", position=slice(*queries)),
        over={"layer": Restore("scores", width=width).windows(model.n_layers)},
        metric=probability(answer, position=prompts.last),
        progress=progress,
        chunks=chunks,
    )
