"""Direct logit attribution."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mijax._errors import ShapeError
from mijax.core import Site, capture
from mijax.core._check import one_each
from mijax.core._tokens import TokensLike, as_tokens
from mijax.nn import Transformer, Unembedding, scaled_like


class Direct(eqx.Module):
    """What each part writes directly to a logit difference, in nats.

    Attributes:
        heads: every attention head, `[batch, layer, heads]`.
        mlps: every MLP, `[batch, layer]`; zeros without MLPs.
        attention_bias: the output bias of attention, `[batch, layer]`.
        embed: the embedding, `[batch]`.
        bias: biases of the final norm and the unembedding, `[batch]`.
    """

    heads: Float[Array, "batch layer heads"]
    mlps: Float[Array, "batch layer"]
    attention_bias: Float[Array, "batch layer"]
    embed: Float[Array, " batch"]
    bias: Float[Array, " batch"]

    def total(self) -> Float[Array, " batch"]:
        """Returns the sum of all parts: the logit difference of the model."""
        layers = self.heads.sum((1, 2)) + (self.mlps + self.attention_bias).sum(1)
        return layers + self.embed + self.bias


def direct_logit_attribution(
    model: Transformer,
    tokens: TokensLike,
    answer: Int[Array, "*batch"],
    wrong: Int[Array, "*batch"],
    *,
    position: Int[Array, " batch"],
) -> Direct:
    r"""Splits a logit difference over the parts that write to the residual stream.

    The final residual stream is a sum of terms, and with the scale of the final norm
    frozen the logit difference is linear in them:
    $\Delta = \sum_i \mathrm{LN}_x(r_i) \cdot (W_U[a] - W_U[w]) + b$
    (Elhage et al. 2021, transformer-circuits.pub/2021/framework; Wang et al. 2023,
    arXiv:2211.00593). It sees direct effects only: what a head does through later
    layers counts for those.

    Args:
        model: a transformer whose blocks add to the residual stream.
        tokens: token ids of a batch, or `mijax.data.Prompts`.
        answer: id of the answer of each prompt.
        wrong: id of the wrong answer of each prompt.
        position: position that is read in each prompt (`prompts.last`).

    Returns:
        The parts; `total()` is the logit difference.

    Raises:
        ShapeError: tokens that are not a batch, or answers beyond the vocabulary.

    Examples:
        >>> import jax, jax.numpy as jnp, mijax
        >>> model = mijax.testing.tiny_gpt2(jax.random.key(0))
        >>> one = jnp.array([3])
        >>> direct = mijax.lens.direct_logit_attribution(
        ...     model, jnp.array([[5, 6, 7]]), one, one + 1, position=one - 1
        ... )
        >>> direct.heads.shape
        (1, 3, 4)
    """
    given, tokens = tokens, as_tokens(tokens)
    if tokens.ndim != 2:
        raise ShapeError(f"Tokens are [batch, seq] here, got {tokens.shape}.")
    names = ("z", "resid_post") if _mlp_free(model) else ("z", "resid_post", "mlp_out")
    sites: dict[str, Site] = {name: Site(name, position=position) for name in names}
    sites["embed"] = Site("embed", position=position)
    acts = capture(model, given, sites)
    batch = (tokens.shape[0],)
    vocab = _head(model).weight.shape[0]
    answer, wrong = (one_each(ids, batch, vocab) for ids in (answer, wrong))
    return _split(model, acts, answer, wrong)


def _mlp_free(model: Transformer) -> bool:
    return getattr(model.blocks, "mlp", None) is None


def _head(model: Transformer) -> Unembedding:
    return model.unembedding or Unembedding(model.embedding.weight)


@eqx.filter_jit
def _split(model: Transformer, acts: Any, answer: Array, wrong: Array) -> Direct:
    head = _head(model)
    attention: Any = getattr(model.blocks, "attention")  # noqa: B009
    weight = head.weight[answer] - head.weight[wrong]
    last = acts["resid_post"][:, -1]

    def direct(term: Array) -> Array:
        axes = (1,) * (term.ndim - 2)
        x = last.reshape(len(last), *axes, -1)
        to = weight.reshape(len(weight), *axes, -1)
        return (scaled_like(model.norm, term, x) * to).sum(-1)

    written = jnp.einsum("blhd,lhde->blhe", acts["z"], attention.w_o)
    layers = acts["z"].shape[:2]
    b_o = jnp.zeros((*layers, last.shape[-1]))
    if attention.b_o is not None:
        b_o = jnp.broadcast_to(attention.b_o, b_o.shape)
    bias = jnp.zeros(len(last)) if head.bias is None else head.bias[answer]
    bias = bias if head.bias is None else bias - head.bias[wrong]
    norm_bias = getattr(model.norm, "bias", None)
    if norm_bias is not None:
        bias = bias + weight @ norm_bias
    mlps = direct(acts["mlp_out"]) if "mlp_out" in acts else jnp.zeros(layers)
    return Direct(direct(written), mlps, direct(b_o), direct(acts["embed"]), bias)
