"""Fit a Jacobian lens, with every source layer from one backward pass."""

import os
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax._errors import ConfigError, FrameError, ShapeError
from mijax._progress import Progress, reports
from mijax.core import AbstractEdit, AbstractModel
from mijax.core.internal import (
    Layered,
    ModelLike,
    Piece,
    as_tokens,
    checked,
    opened,
    padded_lengths,
    run_pieces,
)
from mijax.lens._jacobian import JacobianLens, check_raw


class ExactJacobian(eqx.Module):
    """The exact estimator, with one backward pass per dimension of the final stream.

    The cotangent is one dimension at all counted positions at once; in a causal model,
    this gives the sum over later positions.

    Attributes:
        skip: number of positions at the start of a prompt that do not count, as source
            or as target; the last position does not count either.
        seq: maximum number of tokens; longer prompts are cut.
        chunk: number of dimensions at a time; more take more memory.

    Examples:
        >>> ExactJacobian().skip
        16
    """

    skip: int = eqx.field(static=True, default=16)
    seq: int = eqx.field(static=True, default=128)
    chunk: int = eqx.field(static=True, default=8)

    def __check_init__(self):
        """Raise if the sizes are invalid."""
        if self.skip < 0 or self.chunk < 1 or self.seq < self.skip + 2:
            raise ConfigError(
                "ExactJacobian takes skip of 0 or more, chunk of 1 or more and seq "
                f"above skip + 1, got {self.skip}, {self.chunk} and {self.seq}."
            )

    def __call__(
        self, model: AbstractModel, tokens: Int[Array, " seq"], length: Int[Array, ""]
    ) -> Float[Array, "fitted embed embed"]:
        """Return the Jacobians of one prompt.

        Args:
            model: the model.
            tokens: one prompt, padded on the right.
            length: its number of tokens.
        """
        position = jnp.arange(tokens.shape[0])
        counts = (position >= self.skip) & (position < length - 1)

        def last(shifts: Array) -> Array:
            """Return the final stream, with a shift added after every other block."""
            every = jnp.concatenate([shifts, jnp.zeros_like(shifts[:1])])
            edit = _Shift(Layered(every)).at("resid_post")
            return model(tokens, edit)[1].blocks.resid_post[-1]

        shape = jax.eval_shape(lambda: model(tokens)[1].blocks.resid_post)
        zeros = jnp.zeros((shape.shape[0] - 1, *shape.shape[1:]), shape.dtype)
        _, pull = jax.vjp(last, zeros)
        width = shape.shape[-1]

        def row(dimension: Array) -> Array:
            one = jnp.arange(width) == dimension
            (gradient,) = pull((counts[:, None] & one).astype(shape.dtype))
            gradient = gradient.astype(jnp.float32)
            return jnp.where(counts[:, None], gradient, 0).sum(1) / counts.sum()

        # Dimensions beyond the width have no cotangent and are cut off.
        chunks = -(-width // self.chunk)
        each = jnp.arange(chunks * self.chunk).reshape(chunks, self.chunk)
        rows = jax.lax.map(jax.vmap(row), each)
        return jnp.moveaxis(rows.reshape(-1, *rows.shape[2:])[:width], 0, 1)


@reports("Jacobian lens")
@checked
def fit_jacobian_lens(
    model: ModelLike,
    tokens: Any,
    *,
    method: ExactJacobian | None = None,
    progress: Progress = None,
    resume: str | os.PathLike[str] | None = None,
) -> JacobianLens:
    """Fit a Jacobian lens: the mean of the prompts' Jacobians.

    All prompts have equal weight; prompts without counted positions are skipped. About
    100 prompts of 128 tokens are enough in practice; published lenses used up to 1,000.

    Args:
        model: a causal decoder with weights as loaded, or a language model
            (`mijax.models.load(...)`).
        tokens: token ids of a batch, `mijax.data.Prompts`, or a list of texts.
        method: the estimator, `ExactJacobian()` by default.
        progress: called with the number of prompts done and the total; `None` shows a
            bar after three seconds in a terminal or notebook, `False` shows none.
        resume: file that stores an interrupted fit, to continue from later.

    Returns:
        The lens.

    Raises:
        FrameError: processed weights, or a model that is not causal.
        ShapeError: no prompt is long enough, or the model has one layer.
        OutputError: the file to resume from belongs to another fit.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> method = ExactJacobian(skip=1)
        >>> lens = fit_jacobian_lens(model, [[5, 6, 7, 8]], method=method)
        >>> lens.jacobian.shape, lens.prompts
        ((2, 32, 32), 1)
    """
    method = ExactJacobian() if method is None else method
    model, given = opened(model, tokens)
    check_raw(model)
    if not model.causal:
        raise FrameError(
            "The Jacobian lens sums effects on later tokens, so it needs a causal "
            f"model, got {type(model).__name__}."
        )
    if model.n_layers < 2:
        raise ShapeError("The model has one layer, so it has no earlier layer to fit.")
    ids = np.asarray(as_tokens(given))
    ids = ids[None] if ids.ndim == 1 else ids
    lengths = padded_lengths(given, ids.shape[1])
    lengths = np.asarray([ids.shape[1]] * len(ids) if lengths is None else lengths)
    ids, lengths = ids[:, : method.seq], np.minimum(lengths, method.seq)
    used = np.flatnonzero(lengths > method.skip + 1)
    if not used.size:
        raise ShapeError(
            f"The longest prompt has {lengths.max()} tokens, and the first "
            f"{method.skip} and the last do not count: give longer prompts, or "
            "ExactJacobian(skip=...)."
        )
    one = eqx.filter_eval_shape(method, model, ids[0], lengths[0])
    total = np.zeros(one.shape, np.float32)

    def piece(i: int) -> Piece:
        def call() -> Array:
            tokens, length = jax.device_put((ids[i], lengths[i].astype(np.int32)))
            return _of_prompt(method, model, tokens, length)

        return Piece(1, call, _add)

    job = (method, model, ids[used], lengths[used])
    run_pieces([piece(int(i)) for i in used], total, job, progress, resume)
    return JacobianLens(jnp.asarray(total / len(used)), prompts=len(used))


@checked
def merge_jacobian_lenses(lenses: Sequence[JacobianLens]) -> JacobianLens:
    """Average lenses fitted on parts of a corpus, weighted by number of prompts.

    Args:
        lenses: the lenses.

    Returns:
        The lens for all prompts.

    Raises:
        ShapeError: no lenses, or lenses of different sizes.

    Examples:
        >>> import jax.numpy as jnp
        >>> one = JacobianLens(jnp.ones((1, 2, 2)), prompts=1)
        >>> three = JacobianLens(3 * jnp.ones((1, 2, 2)), prompts=3)
        >>> merge_jacobian_lenses([one, three]).jacobian[0, 0, 0].item()
        2.5
    """
    shapes = {lens.jacobian.shape for lens in lenses}
    if len(shapes) != 1:
        raise ShapeError(
            f"Expected lenses of the same size, got {sorted(shapes) or 'no lenses'}."
        )
    count = sum(lens.prompts for lens in lenses)
    total = sum(lens.prompts * lens.jacobian for lens in lenses)
    return JacobianLens(jnp.asarray(total) / count, prompts=count)


class _Shift(AbstractEdit):
    """Add one value per row and layer, whose gradient is the gradient at the site."""

    value: Layered

    def __call__(self, x: Float[Array, "rows ..."], place: Any) -> Array:
        """Add."""
        return x + self.value.value


@eqx.filter_jit
def _of_prompt(
    method: ExactJacobian, model: AbstractModel, tokens: Array, length: Array
) -> Float[Array, "fitted embed embed"]:
    return method(model, tokens, length)


def _add(found: Any, total: np.ndarray) -> None:
    """Add one prompt's Jacobians in prompt order, so resuming is bitwise exact."""
    total += found
