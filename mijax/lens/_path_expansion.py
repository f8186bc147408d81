"""Path expansion: logits of an attention-only model as a sum over paths."""

import itertools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mijax._errors import ShapeError, SiteError
from mijax.core import AbstractModel
from mijax.core.internal import checked
from mijax.nn import Attention, AttentionBlock, LayerNorm, scaled_like
from mijax.nn.internal import readout_of


class Paths(eqx.Module):
    """What every path from the tokens to the logits contributes.

    Attributes:
        logits: what each path adds.
        bias: what biases add, on whatever path.
        heads: the head that each path takes in every layer; -1 where it takes none.
    """

    logits: Float[Array, "*batch path seq vocab"]
    bias: Float[Array, "*batch seq vocab"]
    heads: tuple[tuple[int, ...], ...] = eqx.field(static=True)

    @property
    def order(self) -> Int[np.ndarray, " path"]:
        """Number of heads on each path: 0 is the direct one, 2 are virtual heads."""
        return (np.array(self.heads) >= 0).sum(1)

    def of_order(self, order: int) -> Float[Array, "*batch seq vocab"]:
        """Returns the sum of the paths through so many heads."""
        which = np.flatnonzero(self.order == order)
        return self.logits[..., which, :, :].sum(-3)

    def total(self) -> Float[Array, "*batch seq vocab"]:
        """Returns the sum of all terms: the logits of the model."""
        return self.logits.sum(-3) + self.bias


class _Frozen(NamedTuple):
    """What one layer's heads do once patterns and scales are constants."""

    block: AttentionBlock
    pattern: Float[Array, "seq heads key_seq"]
    resid_pre: Float[Array, "seq embed"]


@checked
def path_expansion(model: AbstractModel, tokens: Int[Array, "..."]) -> Paths:
    r"""Expands the logits of an attention-only model into paths through its heads.

    With attention patterns $A^h$ and the scales of norms as they are on these tokens,
    a model of two layers is linear in its embeddings:

    $$T = W_U W_E + \sum_h A^h \otimes W_U W_{OV}^h W_E
    + \sum_{h_1, h_2} A^{h_2} A^{h_1} \otimes W_U W_{OV}^{h_2} W_{OV}^{h_1} W_E$$

    and so on: the direct path, every head, and every virtual head, which is a pair that
    composes through values (Elhage et al. 2021, "A Mathematical Framework",
    transformer-circuits.pub/2021/framework). Learned positions enter with the tokens.
    Paths have the bias of no norm; all biases together are a term of their own.

    There are $(1 + H)^L$ paths and each holds `seq` x `vocab` numbers: give short
    prompts to large models.

    Args:
        model: a transformer of attention alone.
        tokens: token ids of one prompt; `jax.vmap` goes outside.

    Returns:
        The paths; `total()` is what the model returns.

    Raises:
        ShapeError: tokens of a batch.
        SiteError: the model has more than attention in its blocks, or another kind of
            attention.
        FrameError: a model that states no `readout`, or capped logits.

    Examples:
        >>> import mijax
        >>> model = mijax.testing.tiny_attention_only(jax.random.key(0))
        >>> paths = path_expansion(model, jnp.array([5, 6, 7]))
        >>> paths.logits.shape, paths.heads[:3]  # 5 x 5 paths
        ((25, 3, 64), ((-1, -1), (-1, 0), (-1, 1)))
        >>> logits, _ = model(jnp.array([5, 6, 7]))
        >>> bool(jnp.allclose(paths.total(), logits, atol=1e-4))
        True
    """
    if jnp.ndim(tokens) != 1:
        raise ShapeError(f"Tokens are [seq] here, got {jnp.shape(tokens)}: use vmap.")
    blocks = model.blocks
    if not isinstance(blocks, AttentionBlock):
        raise SiteError(
            f"Paths go through heads alone; {type(blocks).__name__} has more: "
            "give a model of AttentionBlock."
        )
    if not isinstance(blocks.attention, Attention):
        raise SiteError(
            "Paths go through heads with one value matrix each; this model has "
            f"{type(blocks.attention).__name__}: give a model of nn.Attention."
        )
    readout = readout_of(model, "path_expansion")
    _, acts = model(tokens)
    stream, bias = acts.embed[None], jnp.zeros_like(acts.embed)
    for layer in range(model.n_layers):
        of_layer = lambda leaf, at=layer: leaf[at]  # noqa: E731
        frozen = _Frozen(
            jax.tree.map(of_layer, blocks),
            acts.blocks.pattern[layer],
            acts.blocks.resid_pre[layer],
        )
        written = jax.vmap(lambda term, frozen=frozen: _through(frozen, term))(stream)
        # Paths are in the order of counting: the last layer's head changes fastest.
        stream = jnp.concatenate([stream[:, None], written], axis=1)
        stream = stream.reshape(-1, *bias.shape)
        bias = bias + _of_biases(frozen, bias)
    last = acts.blocks.resid_post[-1]
    head, norm = readout.head, readout.norm
    final = scaled_like(norm, stream, last)
    rest = scaled_like(norm, bias, last) + _bias_of(norm)
    logits = jnp.einsum("pse,ve->psv", final, head.weight)
    each = range(-1, blocks.attention.w_q.shape[-2])
    paths = tuple(itertools.product(each, repeat=model.n_layers))
    return Paths(logits, head(rest), paths)


def _through(
    frozen: _Frozen, term: Float[Array, "seq embed"]
) -> Float[Array, "heads seq embed"]:
    """What each head writes of one term of the stream, biases left out."""
    attention: Any = frozen.block.attention
    norm: Any = frozen.block.norm_1
    x = scaled_like(norm, term, frozen.resid_pre)
    v = jnp.repeat(jnp.einsum("ke,ehd->khd", x, attention.w_v), attention.groups, 1)
    return jnp.einsum("qhk,khd,hde->hqe", frozen.pattern, v, attention.w_o)


def _of_biases(
    frozen: _Frozen, bias: Float[Array, "seq embed"]
) -> Float[Array, "seq embed"]:
    """What a layer writes of earlier biases and its own."""
    attention: Any = frozen.block.attention
    norm: Any = frozen.block.norm_1
    x = scaled_like(norm, bias, frozen.resid_pre)
    x = x + _bias_of(norm)
    v = jnp.einsum("ke,ehd->khd", x, attention.w_v)
    v = v if attention.b_v is None else v + attention.b_v
    v = jnp.repeat(v, attention.groups, 1)
    out = jnp.einsum("qhk,khd,hde->qe", frozen.pattern, v, attention.w_o)
    return out if attention.b_o is None else out + attention.b_o


def _bias_of(norm: Any) -> Array | float:
    if not isinstance(norm, LayerNorm) or norm.bias is None:
        return 0.0
    return norm.bias
