"""`run`: a model's output, with or without edits."""

import os
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from mijax._progress import Progress
from mijax.core._arguments import checked
from mijax.core._check import check_edits, traced_tokens
from mijax.core._check_stated import masked_lengths
from mijax.core._chunked import chunked, over_chunks
from mijax.core._function import FunctionModel
from mijax.core._function_run import run_function
from mijax.core._model import AbstractModel
from mijax.core._sites import Sites
from mijax.core._text import ModelLike, opened
from mijax.core._tokens import as_tokens, lengths_of, over_prompts, padded_lengths


@checked
def run(
    model: ModelLike,
    tokens: Any,
    edits: Any = None,
    *,
    batch: int | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: Progress = None,
) -> Any:
    """Runs a model, with or without edits.

    Compiled once per shape: other layers, positions or heads of the same edits reuse
    the program. Prompts of different length are padded on the right. Padding changes
    nothing before it: in a causal model no token reads it, and other models mask it or
    refuse it.

    Args:
        model: any `AbstractModel`, a language model (`mijax.models.load(...)`), or any
            function as a model (`mijax.model`).
        tokens: token ids of one prompt, or of a batch, or `mijax.data.Prompts`; with a
            language model also a text or a list of texts. A `FunctionModel` takes one
            example, or a batch.
        edits: placed edits (`Zero().at("z", layer=9, head=6)`), a list of them, or
            `None`.
        batch: number of prompts that the program takes at a time, for data sets larger
            than the memory of the device; all at once by default.
        out: with `batch`, a folder for the result, a `.npy` file for each array. The
            same call goes on after an interruption, and opens what is done.
        progress: with `batch`, called with the number of prompts done and their total;
            `None` draws a bar after three seconds in a terminal or notebook, `False`
            none.

    Returns:
        Logits, or what the function returns. After the end of a prompt of `Prompts`
        logits are NaN, so no result can be read from padding unnoticed.
        With `batch` they are NumPy arrays, with `out` read-only memory maps.

    Raises:
        SiteError: a place that the model does not have.
        PositionError: a position beyond the prompt.
        ShapeError: tokens or operands of a shape that does not fit.
        TokenError: a text for a model without a tokenizer.
        ConfigError: `batch` below 1, or `out` without `batch`.
        OutputError: a folder `out` with anything else than this result.

    Examples:
        >>> import jax, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> tokens = jax.numpy.array([[5, 6, 7], [8, 9, 10]])
        >>> ablate = mijax.Zero().at("z", layer=1, head=2)
        >>> mijax.run(model, tokens, ablate).shape
        (2, 3, 64)
    """
    chunks = chunked(batch, out, progress)
    if isinstance(model, FunctionModel):
        return run_function(model, tokens, edits, chunks)
    model, tokens = opened(model, tokens)
    given, lengths, tokens = tokens, lengths_of(tokens), as_tokens(tokens)
    record = check_edits(model, tokens, edits, lengths=lengths)
    masked_lengths(model, given, tokens.shape[-1])
    tokens = traced_tokens(model, tokens)
    lengths = padded_lengths(given, tokens.shape[-1])
    return over_chunks(_run, (model, tokens, record, lengths), chunks)


@eqx.filter_jit
def _run(
    model: AbstractModel,
    tokens: Array,
    edits: Sites[Any],
    lengths: Array | None,
    prompts: Array | None,
) -> Array:
    def one(tokens: Array, prompt: Array | None) -> Array:
        if lengths is None:
            return model(tokens, edits, prompt=prompt)[0]
        length = lengths[0 if prompt is None else prompt]
        masked = {} if model.causal else {"length": length}
        logits = model(tokens, edits, prompt=prompt, **masked)[0]
        return jnp.where(jnp.arange(len(tokens))[:, None] < length, logits, jnp.nan)

    return over_prompts(one, tokens, prompts)
