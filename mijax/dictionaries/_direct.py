"""What latents write directly to logits."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mijax._errors import PositionError, ShapeError, SiteError
from mijax.core import AbstractModel, Site, capture
from mijax.core.internal import TokensLike, as_tokens, check_linear_writes, one_each
from mijax.dictionaries._dictionary import Dictionary
from mijax.dictionaries._latents import (
    direction,
    fitting,
    of_one_layer,
    rows,
    written,
)
from mijax.dictionaries._wiring import SAE
from mijax.nn import LayerNorm
from mijax.nn.internal import readout_of

# What blocks state to add to the stream, and the sites that are it or a term of it.
WRITTEN = ("attn_out", "mlp_out", "z")
SITES = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post", "embed", "z")


class DirectLatents(eqx.Module):
    """What each part of a dictionary writes directly to a logit difference, in nats.

    Attributes:
        latents: every latent, `[batch, latent]`; 0 where it is not active.
        error: what the dictionary misses, `[batch]`.
        centre: the decoder's bias, `[batch]`.
    """

    latents: Float[Array, "batch latent"]
    error: Float[Array, " batch"]
    centre: Float[Array, " batch"]

    def total(self) -> Float[Array, " batch"]:
        """Returns the sum of all parts: what the site's activation writes."""
        return self.latents.sum(1) + self.error + self.centre


def direct_latent_attribution(
    model: AbstractModel,
    dictionary: Dictionary,
    tokens: TokensLike,
    answer: Int[Array, "..."],
    wrong: Int[Array, "..."] | None = None,
    *,
    site: Site,
    position: Int[Array, " batch"],
) -> DirectLatents:
    r"""Splits what an activation writes directly to logits over latents.

    With the scale of the final norm frozen, a term $r$ of the residual stream writes
    $\mathrm{LN}_x(r) \cdot (W_U[a] - W_U[w])$, linear in it, and an activation is
    $\sum_i f_i d_i + c + e$: latents times their rows, the decoder's bias, and what the
    dictionary misses. `total()` is what `mijax.lens.direct_logit_attribution` says of
    the same activation.

    Args:
        model: a model that states its `readout`, and whose blocks state that what they
            write is added to the residual stream (`linear_writes`).
        dictionary: an SAE of the site.
        tokens: token ids of a batch.
        answer: id of the answer of each prompt.
        wrong: id of the wrong answer; `None` attributes the answer's logit.
        site: the residual stream, or what is added to it: `resid_pre`, `attn_out`,
            `resid_mid`, `mlp_out`, `resid_post` (with a layer), `embed`, or `z`, whose
            heads are joined and go through their output weights.
        position: position that is read in each prompt (`prompts.last`).

    Returns:
        The parts.

    Raises:
        FrameError: a model that states no `readout`, capped logits, or blocks that do
            not state `linear_writes`.
        SiteError: a site that adds nothing to the residual stream.
        ShapeError: tokens that are not a batch, answers beyond the vocabulary, or a
            dictionary that is no SAE of it.
        PositionError: a site with a position of its own.

    Examples:
        >>> from mijax import dictionaries as d
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> sae = d.untrained(d.TopK(4), d.SAE(32), latents=64, key=jax.random.key(1))
        >>> found = direct_latent_attribution(
        ...     *(model, sae, [[5, 6, 7]], jnp.array([3]), jnp.array([4])),
        ...     site=Site("mlp_out", layer=1),
        ...     position=jnp.array([2]),
        ... )
        >>> found.latents.shape, int((found.latents != 0).sum())
        ((1, 64), 4)
    """
    readout = readout_of(model, "direct_latent_attribution")
    if site.name in WRITTEN:
        check_linear_writes(model, "direct_latent_attribution")
    given, tokens = tokens, as_tokens(tokens)
    if tokens.ndim != 2:
        raise ShapeError(f"Tokens are [batch, seq] here, got {tokens.shape}.")
    if site.name not in SITES:
        raise SiteError(
            f"{site.name!r} is not added to the residual stream; sites that are: "
            f"{', '.join(SITES)}."
        )
    if not isinstance(dictionary.wiring, SAE):
        raise ShapeError(
            "Latents write directly where their dictionary writes the activation that "
            f"it reads (an SAE), got a {type(dictionary.wiring).__name__}."
        )
    if site.position is not None or site.head is not None:
        raise PositionError("Give the position beside the site, and all heads.")
    of_one_layer(site)
    sites = {
        "last": Site("resid_post", layer=model.n_layers - 1, position=position),
        "here": Site(site.name, site.layer, position=position),
    }
    acts = capture(model, given, sites)
    vocab = readout.outputs
    batch = tokens.shape[:1]
    answer = one_each(answer, batch, vocab)
    wrong = None if wrong is None else one_each(wrong, batch, vocab)
    layer = 0 if site.layer is None else site.layer
    return _split(
        *(model, dictionary, acts, answer, wrong, jnp.asarray(layer), site.name)
    )


def logit_weights(
    model: AbstractModel, dictionary: Dictionary, latent: int | Int[Array, "*some"]
) -> Float[Array, "*some vocab"]:
    """Returns what a latent's row of the decoder does to every logit.

    The row goes through the final norm but for its scale, which depends on the prompt,
    and through the unembedding. The largest are the tokens that the latent promotes.

    Args:
        model: a model that states its `readout`.
        dictionary: of a site whose activations are added to the residual stream.
        latent: which; may be traced, or several.

    Returns:
        Logits per unit of the latent, up to the norm's scale, `[*latent, vocab]`.

    Raises:
        FrameError: a model that states no `readout`.
        ShapeError: a dictionary of another width than the residual stream.
        SiteError: a latent that the dictionary does not have.

    Examples:
        >>> from mijax import dictionaries as d
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> sae = d.untrained(d.TopK(4), d.SAE(32), latents=64, key=jax.random.key(1))
        >>> values, promoted = jax.lax.top_k(logit_weights(model, sae, 9), 5)
        >>> promoted.shape
        (5,)
    """
    readout = readout_of(model, "logit_weights", linear=False)
    width = readout.width
    row = direction(dictionary, latent)
    if dictionary.wiring.writes != (width,):
        raise ShapeError(
            f"The residual stream has size {width}, and the dictionary writes "
            f"{list(dictionary.wiring.writes)}."
        )
    if isinstance(readout.norm, LayerNorm):
        row = row - row.mean(-1, keepdims=True)
    weight = getattr(readout.norm, "weight", None)
    row = row if weight is None else row * weight
    return row @ readout.head.weight.T.astype(jnp.float32)


@eqx.filter_jit
def _split(
    model: AbstractModel,
    dictionary: Dictionary,
    acts: dict[str, Array],
    answer: Array,
    wrong: Array | None,
    layer: Array,
    name: str,
) -> DirectLatents:
    direct = lambda x, a, b: model.readout.direction(x, a, b)[0]  # noqa: E731
    along = eqx.filter_vmap(direct)(acts["last"], answer, wrong)
    if name == "z":
        attention: Any = getattr(model.blocks, "attention")  # noqa: B009
        w_o = attention.w_o[layer].astype(jnp.float32)
        along = jnp.einsum("be,hde->bhd", along, w_o).reshape(len(along), -1)
    x = fitting(dictionary, acts["here"], heads=name == "z")
    latents = dictionary.encode(x)
    centre = dictionary.weights.centre / dictionary.scale
    missed = x - written(dictionary, latents) - centre
    return DirectLatents(
        latents * (along @ rows(dictionary).T), (missed * along).sum(1), along @ centre
    )
