"""The logit lens."""

from typing import Any

from mijax.core.internal import ModelLike, checked
from mijax.lens._lens import LogitLens
from mijax.lens._read import read
from mijax.lens._reading import LensReading


@checked
def logit_lens(
    model: ModelLike,
    tokens: Any,
    *,
    position: Any = None,
    ids: Any = None,
    top: int | None = None,
    targets: Any = None,
    site: str | None = None,
) -> LensReading:
    r"""Decode the residual stream of every layer with the final norm and unembedding.

    $\ell_i = W_U\,\mathrm{LN}(r_i)$ with the residual stream $r_i$ at layer $i$
    (nostalgebraist 2020, "interpreting GPT: the logit lens"). After the last layer, it
    equals the model's output. Same as `read(model, tokens, LogitLens(site), ...)`.

    Args:
        model: any `AbstractModel`, a language model (`mijax.models.load(...)`), or a
            function that states its `readout` (`mijax.model`).
        tokens: token ids of one prompt, or of a batch (padded on the right), or
            `mijax.data.Prompts`; with a language model also a text or a list of texts.
        position: position to decode, or one per prompt (`prompts.last`); every position
            by default.
        ids: tokens to return, `[k]`, or `[batch, k]` with different tokens per prompt.
        top: instead of `ids`, number of top tokens to return at each position, best
            first.
        targets: target tokens whose rank and log probability to return; see `read`.
        site: `"resid_post"` (the default), `"resid_pre"` or `"resid_mid"`; for a
            function, any site with the width of the residual stream, by default the
            site of its readout.

    Returns:
        Logits, ids, normalizers, entropies and ranks.

    Raises:
        SiteError: a site that is not the residual stream.
        FrameError: the last layer does not reproduce the model's logits, or a function
            has no readout.
        ShapeError: both `ids` and `top`, `top` beyond the vocabulary, or ids that do
            not fit the prompts or the vocabulary.
        PositionError: a position beyond the prompt.

    Examples:
        >>> import jax, jax.numpy as jnp, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> tokens = jnp.array([[5, 6, 7], [8, 9, 10]])
        >>> best = mijax.lens.logit_lens(model, tokens, position=2, top=1)
        >>> best.tokens.shape  # prompt, layer, one token
        (2, 3, 1)
        >>> last = mijax.run(model, tokens)[:, 2]
        >>> bool((best.tokens[:, -1, 0] == last.argmax(-1)).all())
        True
    """
    options = {"position": position, "ids": ids, "top": top, "targets": targets}
    return read(model, tokens, LogitLens(site), **options)
