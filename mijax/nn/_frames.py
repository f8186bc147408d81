"""Weight processing: other weights, the same function.

Each function takes a model and returns one that computes the same, in a frame that is
easier to read; `Transformer.frame` records what was applied, in order.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax.numpy as jnp
from jaxtyping import Array, Float

from mijax._errors import FrameError
from mijax.core.internal import check_linear_writes
from mijax.nn._basic import (
    Embedding,
    Identity,
    LayerNorm,
    OptionalNorm,
    RMSNorm,
    Softmax,
    Unembedding,
)
from mijax.nn._experts import Experts
from mijax.nn._latent import LatentAttention
from mijax.nn._mlp import MLP, GatedMLP
from mijax.nn._transformer import Transformer
from mijax.nn.mixers import AbstractMixer

M = TypeVar("M")


def fold_norm(model: Transformer) -> Transformer:
    r"""Folds the weights and biases of all norms into what reads the norms.

    For a norm $\gamma \hat x + \beta$ read by $W$: $W \leftarrow \gamma W$ and
    $b \leftarrow b + \beta W$. After a LayerNorm, whose $\hat x$ has mean zero, the
    mean over embed of each column of $W$ acts on nothing and is removed too, as
    TransformerLens does. An unembedding that was tied becomes one of its own.

    Args:
        model: the model.

    Returns:
        The model whose norms only normalise; logits are unchanged.

    Raises:
        FrameError: it was applied before, value biases were folded before, a norm is
            missing, what reads a norm's bias has no place for a bias, or the blocks do
            not state how they write (`AbstractBlock.linear_writes`).

    Examples:
        >>> import jax, mijax.testing
        >>> fold_norm(mijax.testing.tiny_gpt2(jax.random.key(0))).frame
        ('fold_norm',)
    """
    check(model, "fold_norm", before=("fold_value_biases",))
    check_linear_writes(model, "fold_norm")
    blocks: Any = model.blocks
    for name in blocks.norm_readers:
        if isinstance(getattr(blocks, name), Identity | OptionalNorm):
            raise FrameError(f"fold_norm: some blocks have no {name} to fold.")
    for name, part in blocks.norm_readers.items():
        norm, reader = getattr(blocks, name), getattr(blocks, part)
        reads = attention_reads(reader) if part == "attention" else mlp_reads(reader)
        folded = read_norm(reader, norm, reads)
        blocks = replace(blocks, **{part: folded, name: bare(norm)})
    head = untied(model)
    if isinstance(model.norm, Identity):
        raise FrameError("fold_norm: the model has no final norm to fold.")
    weight, bias = fold(head.weight.T, head.bias, model.norm, lead=0)
    head = Unembedding(weight.T, bias)
    return done(
        model, "fold_norm", blocks=blocks, norm=bare(model.norm), unembedding=head
    )


def centre_writing(model: Transformer) -> Transformer:
    """Removes the mean over embed from everything that writes to the residual stream.

    A LayerNorm subtracts that mean, so nothing reads it. An unembedding that was tied
    becomes one of its own.

    Args:
        model: a model with LayerNorm everywhere.

    Returns:
        The model with a residual stream of mean zero; logits are unchanged.

    Raises:
        FrameError: a norm is not LayerNorm, or it was applied before.

    Examples:
        >>> import jax, mijax.testing
        >>> model = centre_writing(mijax.testing.tiny_gpt2(jax.random.key(0)))
        >>> bool(abs(model.embedding.weight.mean(-1)).max() < 1e-6)
        True
    """
    check(model, "centre_writing")
    check_linear_writes(model, "centre_writing")
    blocks: Any = model.blocks
    norms = [*(getattr(blocks, name) for name in blocks.norm_readers), model.norm]
    for norm in norms:
        if not isinstance(norm, LayerNorm):
            raise FrameError(
                "centre_writing needs LayerNorm, which ignores the mean of the "
                f"residual stream; {type(norm).__name__} of this model reads it."
            )
    if not isinstance(model.embedding, Embedding):
        raise FrameError(
            "centre_writing needs an embedding of tokens only; this model has "
            f"{type(model.embedding).__name__}."
        )
    if model.embedding.norm is not None:
        raise FrameError(
            "centre_writing needs an embedding without a norm; this one has "
            f"{type(model.embedding.norm).__name__}."
        )
    head = untied(model)
    attention, embedding, positions = blocks.attention, model.embedding, model.positions
    attention = replace(
        attention, w_o=centred(attention.w_o), b_o=centred(attention.b_o)
    )
    blocks = replace(blocks, attention=attention)
    if hasattr(blocks, "mlp"):
        mlp = replace(blocks.mlp, w_out=centred(blocks.mlp.w_out))
        if hasattr(mlp, "b_out"):
            mlp = replace(mlp, b_out=centred(mlp.b_out))
        blocks = replace(blocks, mlp=mlp)
    embedding = replace(embedding, weight=centred(embedding.weight))
    if positions is not None:
        positions = replace(positions, weight=centred(positions.weight))
    return done(
        model,
        "centre_writing",
        blocks=blocks,
        embedding=embedding,
        positions=positions,
        unembedding=head,
    )


def centre_unembedding(model: Transformer) -> Transformer:
    """Removes the mean over the vocabulary from the unembedding.

    Args:
        model: the model.

    Returns:
        The model whose logits have mean zero over the vocabulary; they change by one
        constant per position, so probabilities and logit differences do not change.

    Raises:
        FrameError: it was applied before.

    Examples:
        >>> import jax, mijax.testing
        >>> model = centre_unembedding(mijax.testing.tiny_llama(jax.random.key(0)))
        >>> model.frame
        ('centre_unembedding',)
    """
    check(model, "centre_unembedding")
    head = untied(model)
    head = replace(head, weight=centred(head.weight, 0), bias=centred(head.bias, 0))
    return done(model, "centre_unembedding", unembedding=head)


def fold_value_biases(model: Transformer) -> Transformer:
    r"""Folds value biases into the output bias of attention.

    Attention rows sum to one, so a value bias adds the same to every position:
    $b_O \leftarrow b_O + \sum_h b_V^{g(h)} W_O^h$, with $g(h)$ the key/value head that
    query head $h$ reads. The pattern must stay a distribution: after edits of
    `pattern` or `z` the two models differ.

    Args:
        model: the model.

    Returns:
        The model with value biases of zero (`None`); logits are unchanged.

    Raises:
        FrameError: it was applied before, there are no value biases, or rows of the
            pattern do not sum to one (`SinkSoftmax`).

    Examples:
        >>> import jax, mijax.testing
        >>> model = fold_value_biases(mijax.testing.tiny_gpt2(jax.random.key(0)))
        >>> model.blocks.attention.b_v is None
        True
    """
    check(model, "fold_value_biases")
    blocks: Any = model.blocks
    attention: Any = blocks.attention
    if getattr(attention, "b_v", None) is None:
        raise FrameError(
            "fold_value_biases: this model has no value biases; nothing to fold. "
            "Where a norm has a bias, apply fold_norm first."
        )
    if not isinstance(attention.softmax, Softmax):
        raise FrameError(
            f"fold_value_biases: with {type(attention.softmax).__name__} the pattern "
            "does not sum to 1, so value biases are no constant. Leave them in place."
        )
    groups = attention.w_q.shape[-2] // attention.w_v.shape[-2]
    per_head = jnp.repeat(attention.b_v, groups, axis=-2)
    bias = jnp.einsum("lhd,lhde->le", wide(per_head), wide(attention.w_o))
    if attention.b_o is not None:
        bias = bias + wide(attention.b_o)
    attention = replace(attention, b_v=None, b_o=bias.astype(attention.w_o.dtype))
    return done(model, "fold_value_biases", blocks=replace(blocks, attention=attention))


FRAMES: dict[str, Callable[[Transformer], Transformer]] = {
    "fold_norm": fold_norm,
    "centre_writing": centre_writing,
    "centre_unembedding": centre_unembedding,
    "fold_value_biases": fold_value_biases,
}


def attention_reads(attention: Any) -> tuple[tuple[str, str | None], ...]:
    """Return which weights of attention read its norm, and the bias of each."""
    if isinstance(attention, LatentAttention):
        query = "w_q_up" if attention.w_q_latent is None else "w_q_latent"
        return ((query, None), ("w_kv_latent", None), ("w_k_rotated", None))
    return (("w_q", "b_q"), ("w_k", "b_k"), ("w_v", "b_v"))


def mlp_reads(mlp: Any) -> tuple[tuple[str, str | None], ...]:
    """Which weights of an MLP read its norm, and the bias beside each."""
    if isinstance(mlp, MLP):
        return (("w_in", "b_in"),)
    if isinstance(mlp, GatedMLP):
        return (("w_gate", "b_gate"), ("w_in", "b_in"))
    if isinstance(mlp, Experts):
        return (("w_router", "b_router"), ("w_gate", "b_gate"), ("w_in", "b_in"))
    if isinstance(mlp, AbstractMixer):
        return mlp.reads
    raise FrameError(
        f"fold_norm: it is not known what in {type(mlp).__name__} reads the norm; "
        "only MLP, GatedMLP, Experts and mixers are supported."
    )


def read_norm(module: M, norm: Any, reads: tuple[tuple[str, str | None], ...]) -> M:
    """Folds stacked norms into the weights `[layer, embed, ...]` of a module."""
    new: dict[str, Array | None] = {}
    for name, bias_name in reads:
        bias = None if bias_name is None else getattr(module, bias_name)
        new[name], bias = fold(getattr(module, name), bias, norm, lead=1)
        if bias_name is not None:
            new[bias_name] = bias
        elif bias is not None:
            raise FrameError(
                f"fold_norm: {name} of {type(module).__name__} reads a norm with a "
                "bias, and has no bias to fold it into."
            )
    return replace(module, **new)


def fold(
    weight: Array, bias: Array | None, norm: Any, *, lead: int
) -> tuple[Array, Array | None]:
    """Folds a norm into one weight, whose axis `lead` is embed, and its bias."""
    gain, shift, dtype = norm.weight, getattr(norm, "bias", None), weight.dtype
    weight = wide(weight)
    if shift is not None:
        moved = shifted(weight, wide(shift), lead)
        bias = (moved if bias is None else moved + wide(bias)).astype(dtype)
    if gain is not None:
        weight = weight * wide(gain).reshape(
            gain.shape + (1,) * (weight.ndim - gain.ndim)
        )
    if isinstance(norm, LayerNorm):
        weight = weight - weight.mean(lead, keepdims=True)
    return weight.astype(dtype), bias


def shifted(weight: Array, shift: Array, axis: int) -> Float[Array, "..."]:
    """What a norm's bias adds after the weight: `shift @ weight` per layer."""
    if axis == 0:
        return jnp.tensordot(shift, weight, axes=1)
    return jnp.einsum("le,le...->l...", shift, weight)


def bare(norm: Any) -> LayerNorm | RMSNorm:
    """The norm without weight and bias."""
    if isinstance(norm, LayerNorm):
        return LayerNorm(None, None, norm.eps)
    return RMSNorm(None, norm.eps)


def untied(model: Transformer) -> Unembedding:
    """The unembedding, a copy of the embedding where it was tied."""
    return model.unembedding or Unembedding(model.embedding.weight)


def centred(x: Array | None, axis: int = -1) -> Array | None:
    """Subtracts the mean over an axis."""
    if x is None:
        return None
    return (wide(x) - wide(x).mean(axis, keepdims=True)).astype(x.dtype)


def wide(x: Array) -> Float[Array, "..."]:
    """Float32, so that low precision is rounded once."""
    return x.astype(jnp.float32)


def replace(module: M, **fields: Any) -> M:
    """A copy of a module with other fields."""
    return dataclasses.replace(cast(Any, module), **fields)


def check(model: Transformer, name: str, *, before: tuple[str, ...] = ()) -> None:
    """Refuses what was done before, and what has to come before something done."""
    if name in model.frame:
        raise FrameError(
            f"{name} was applied to this model before; its frame is {model.frame}."
        )
    for later in before:
        if later in model.frame:
            raise FrameError(
                f"{name} has to come before {later}: it would make value biases again. "
                f"The model's frame is {model.frame}; start from the loaded model."
            )


def done(model: Transformer, name: str, **fields: Any) -> Transformer:
    """The model with new parts and the frame recorded."""
    return replace(model, frame=(*model.frame, name), **fields)
