"""Layout of decoder leaves in weight files, and their names in GGUF files.

Matrices are `[out, in]`, heads are consecutive rows. A family says under which name a
file has each leaf; tensors that hold several leaves are rules of the family.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mijax.models._family import Rule, same

Transform = Callable[[np.ndarray], np.ndarray]
# Leaves that are the weight of a norm.
GAIN = re.compile(r"norm(_\d)?\.weight$")

LAYER = "model.layers.{layer}."
# Hugging Face names of a Llama, from which the other families differ.
NAMES = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "unembedding.weight": "lm_head.weight",
    "blocks.norm_1.weight": f"{LAYER}input_layernorm.weight",
    "blocks.norm_2.weight": f"{LAYER}post_attention_layernorm.weight",
    "blocks.attention.w_q": f"{LAYER}self_attn.q_proj.weight",
    "blocks.attention.w_k": f"{LAYER}self_attn.k_proj.weight",
    "blocks.attention.w_v": f"{LAYER}self_attn.v_proj.weight",
    "blocks.attention.w_o": f"{LAYER}self_attn.o_proj.weight",
    "blocks.mlp.w_gate": f"{LAYER}mlp.gate_proj.weight",
    "blocks.mlp.w_in": f"{LAYER}mlp.up_proj.weight",
    "blocks.mlp.w_out": f"{LAYER}mlp.down_proj.weight",
}
GGUF_NAMES = {
    "embedding.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "unembedding.weight": "output.weight",
    "blocks.norm_1.weight": "blk.{layer}.attn_norm.weight",
    "blocks.norm_2.weight": "blk.{layer}.ffn_norm.weight",
    "blocks.attention.w_q": "blk.{layer}.attn_q.weight",
    "blocks.attention.w_k": "blk.{layer}.attn_k.weight",
    "blocks.attention.w_v": "blk.{layer}.attn_v.weight",
    "blocks.attention.w_o": "blk.{layer}.attn_output.weight",
    "blocks.mlp.w_gate": "blk.{layer}.ffn_gate.weight",
    "blocks.mlp.w_in": "blk.{layer}.ffn_up.weight",
    "blocks.mlp.w_out": "blk.{layer}.ffn_down.weight",
}


# Names of norms before and after attention and MLP.
SANDWICH = NAMES | {
    "blocks.norm_2.weight": f"{LAYER}post_attention_layernorm.weight",
    "blocks.norm_3.weight": f"{LAYER}pre_feedforward_layernorm.weight",
    "blocks.norm_4.weight": f"{LAYER}post_feedforward_layernorm.weight",
}
GGUF_SANDWICH = GGUF_NAMES | {
    "blocks.norm_2.weight": "blk.{layer}.post_attention_norm.weight",
    "blocks.norm_3.weight": "blk.{layer}.ffn_norm.weight",
    "blocks.norm_4.weight": "blk.{layer}.post_ffw_norm.weight",
}
# Names of a norm of every query and key head.
HEAD_NORMS = {
    f"blocks.attention.{x}_norm.weight": f"{LAYER}self_attn.{x}_norm.weight"
    for x in "qk"
}
GGUF_HEAD_NORMS = {
    f"blocks.attention.{x}_norm.weight": f"blk.{{layer}}.attn_{x}_norm.weight"
    for x in "qk"
}


def plain_names(
    top: Mapping[str, str], layer: str, parts: Mapping[str, str]
) -> dict[str, str]:
    """Spell the names of parts that have a weight and a bias.

    Args:
        top: name of each leaf outside the blocks.
        layer: what a block's names begin with.
        parts: name of each part of a block: `norm_1`, `q`, `o`, `in`, ...

    Returns:
        The name of every leaf.
    """
    names = dict(top)
    for part, name in parts.items():
        for end in ("weight", "bias"):
            leaf = PARTS.get(part, f"blocks.{part}.{end}").format(end[0])
            names[leaf] = f"{layer}{name}.{end}"
    return names


# Leaves of the parts that are not norms, with `w` or `b` for their weight and bias.
PARTS = {x: f"blocks.attention.{{}}_{x}" for x in "qkvo"}
PARTS |= {x: f"blocks.mlp.{{}}_{x}" for x in ("gate", "in", "out")}


def shared_norm(found: Sequence[Rule]) -> tuple[Rule, ...]:
    """Let the norm that attention reads be the MLP's too, as a copy."""
    return tuple(
        dataclasses.replace(
            rule,
            into={
                **rule.into,
                **{
                    leaf.replace("norm_1", "norm_2"): make
                    for leaf, make in rule.into.items()
                },
            },
        )
        if any("norm_1" in leaf for leaf in rule.into)
        else rule
        for rule in found
    )


def rules(
    spec: Any,
    names: Mapping[str, str],
    *,
    gain: Transform = same,
    order: Transform = same,
    written: float = 1.0,
) -> tuple[Rule, ...]:
    """Build a rule for each leaf that a file has as one tensor.

    Args:
        spec: the sizes.
        names: name in the file of each leaf; an unembedding that is tied is left out.
        gain: makes the weight of a norm of what the file has.
        order: makes the features of every query and key head, `[heads, head_dim, ...]`,
            of those in the file.
        written: factor of all that attention and MLP write.

    Returns:
        The rules.
    """
    tied = spec.tied and "unembedding.weight" in names
    kept = {
        leaf: name
        for leaf, name in names.items()
        if not (tied and leaf == "unembedding.weight")
    }
    layouts = matrices(spec, order, written) | vectors(spec, order, written)
    found = []
    for leaf, name in kept.items():
        if GAIN.search(leaf):
            found.append(Rule(name, (norm_size(spec, leaf),), {leaf: gain}))
            continue
        shape, make = layouts[leaf]
        found.append(Rule(name, shape, {leaf: make}))
    return tuple(found)


def of_tower(
    rule: Rule, tower: str, layers: int, renamed: Mapping[str, str] | None = None
) -> Rule:
    """Return a rule of a decoder as that of one tower of several.

    Args:
        rule: the rule.
        tower: path of the tower in the model.
        layers: its number of layers.
        renamed: for parts of a leaf's path what they are called in this tower.
    """

    def leaf(name: str) -> str:
        for old, new in (renamed or {}).items():
            name = name.replace(old, new)
        return f"{tower}.{name}"

    into = {leaf(name): make for name, make in rule.into.items()}
    return dataclasses.replace(rule, into=into, layers=layers)


def norm_size(spec: Any, leaf: str) -> int:
    """Return the number of features that a norm reads."""
    heads = {"q": spec.heads, "k": getattr(spec, "kv_heads", spec.heads)}
    for letter, count in heads.items():
        if leaf == f"blocks.attention.{letter}_norm.weight":
            return spec.head_dim
        if leaf == f"blocks.attention.{letter}_norm.norm.weight":
            return count * spec.head_dim
    return spec.embed


def matrices(
    spec: Any, order: Transform, written: float
) -> dict[str, tuple[tuple[int, ...], Transform]]:
    """Return shape and transform of every matrix."""
    embed, mlp, vocab = spec.embed, spec.mlp, spec.vocab
    heads, kv_heads, head_dim = head_sizes(spec)

    def reads(count: int, order: Transform) -> tuple[tuple[int, ...], Transform]:
        def make(x: np.ndarray) -> np.ndarray:
            return order(x.reshape(count, head_dim, embed)).transpose(2, 0, 1)

        return (count * head_dim, embed), make

    def writes(x: np.ndarray) -> np.ndarray:
        return written * x.T.reshape(heads, head_dim, embed)

    return {
        "embedding.weight": ((vocab, embed), same),
        "positions.weight": ((spec.context, embed), same),
        "unembedding.weight": ((vocab, embed), same),
        "blocks.attention.w_q": reads(heads, order),
        "blocks.attention.w_k": reads(kv_heads, order),
        "blocks.attention.w_v": reads(kv_heads, same),
        "blocks.attention.w_o": ((embed, heads * head_dim), writes),
        "blocks.mlp.w_gate": ((mlp, embed), turned),
        "blocks.mlp.w_in": ((mlp, embed), turned),
        "blocks.mlp.w_out": ((embed, mlp), lambda x: written * x.T),
    }


def vectors(
    spec: Any, order: Transform, written: float
) -> dict[str, tuple[tuple[int, ...], Transform]]:
    """Return shape and transform of every bias."""
    heads, kv_heads, head_dim = head_sizes(spec)

    def reads(count: int, order: Transform) -> tuple[tuple[int, ...], Transform]:
        return (count * head_dim,), lambda x: order(x.reshape(count, head_dim))

    def scaled(x: np.ndarray) -> np.ndarray:
        return written * x

    return {
        "unembedding.bias": ((spec.vocab,), same),
        "norm.bias": ((spec.embed,), same),
        "blocks.norm_1.bias": ((spec.embed,), same),
        "blocks.norm_2.bias": ((spec.embed,), same),
        "blocks.attention.b_q": reads(heads, order),
        "blocks.attention.b_k": reads(kv_heads, order),
        "blocks.attention.b_v": reads(kv_heads, same),
        "blocks.attention.b_o": ((spec.embed,), scaled),
        "blocks.mlp.b_gate": ((spec.mlp,), same),
        "blocks.mlp.b_in": ((spec.mlp,), same),
        "blocks.mlp.b_out": ((spec.embed,), scaled),
    }


def head_sizes(spec: Any) -> tuple[int, int, int]:
    """Return the numbers of query heads and key heads, and their size."""
    heads = spec.heads
    kv_heads = getattr(spec, "kv_heads", heads)
    return heads, kv_heads, getattr(spec, "head_dim", spec.embed // heads)


def tied_head(spec: Any, names: Mapping[str, str]) -> dict[str, str]:
    """Return the tensor that repeats the embedding in some files of a tied model."""
    if not spec.tied:
        return {}
    return {names["unembedding.weight"]: names["embedding.weight"]}


def halves(x: np.ndarray) -> np.ndarray:
    """Order the features of heads whose rotation turns neighbors.

    Features `2i` and `2i + 1` of the file become `i` and `i + head_dim / 2`.

    Args:
        x: `[heads, head_dim, ...]`.
    """
    pairs = x.reshape(len(x), -1, 2, *x.shape[2:])
    return pairs.swapaxes(1, 2).reshape(x.shape)


def turned(x: np.ndarray) -> np.ndarray:
    """Transpose a matrix."""
    return x.T


def one_plus(x: np.ndarray) -> np.ndarray:
    """Return the weight of a norm that files hold as its distance from 1."""
    return 1 + x
