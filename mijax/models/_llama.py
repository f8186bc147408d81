"""Llama and SmolLM2 (Touvron et al. 2023, arXiv:2302.13971).

RMSNorm, rotary positions, gated MLP, grouped-query attention, no biases.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax._errors import LoadError
from mijax.io import Gguf
from mijax.models._config import (
    ACTIVATIONS,
    Keys,
    activation_name,
    check_gguf,
    divide,
    need,
)
from mijax.models._family import Family, Preset, Rule, Table, same, short
from mijax.models._init import Normal, rms_norm
from mijax.nn import (
    Attention,
    Block,
    Embedding,
    GatedMLP,
    Rotary,
    Transformer,
    Unembedding,
)

FREQUENCY = "blocks.attention.rotary.frequency"


@dataclasses.dataclass(frozen=True)
class LlamaSpec:
    """Sizes of a Llama.

    `rope_factor` above 1 is the `llama3` scaling of long wavelengths, and the other
    three `rope_` fields are its parameters.
    """

    layers: int
    embed: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    context: int
    rope_theta: float = 10000.0
    rope_factor: float = 1.0
    rope_low: float = 1.0
    rope_high: float = 4.0
    rope_context: int = 8192
    eps: float = 1e-5
    activation: str = "silu"
    tied: bool = True


def init(spec: LlamaSpec, key: PRNGKeyArray, dtype: DTypeLike) -> Transformer:
    """Draws weights of standard deviation 0.02."""
    normal = Normal(key, dtype)
    n, embed, head_dim = spec.layers, spec.embed, spec.head_dim
    attention = Attention(
        w_q=normal(n, embed, spec.heads, head_dim),
        w_k=normal(n, embed, spec.kv_heads, head_dim),
        w_v=normal(n, embed, spec.kv_heads, head_dim),
        w_o=normal(n, spec.heads, head_dim, embed),
        rotary=Rotary(jnp.asarray(computed(spec)[FREQUENCY])),
    )
    mlp = GatedMLP(
        w_gate=normal(n, embed, spec.mlp),
        w_in=normal(n, embed, spec.mlp),
        w_out=normal(n, spec.mlp, embed),
        activation=ACTIVATIONS[spec.activation],
    )
    norms = (rms_norm(embed, dtype, spec.eps, layers=n) for _ in range(2))
    return Transformer(
        embedding=Embedding(normal(spec.vocab, embed)),
        positions=None,
        blocks=Block(next(norms), attention, next(norms), mlp),
        norm=rms_norm(embed, dtype, spec.eps),
        unembedding=None if spec.tied else Unembedding(normal(spec.vocab, embed)),
        context=spec.context,
    )


def computed(spec: LlamaSpec) -> dict[str, np.ndarray]:
    """The rotary frequencies of every layer."""
    return {FREQUENCY: np.tile(frequencies(spec), (spec.layers, 1))}


def frequencies(spec: LlamaSpec) -> np.ndarray:
    """Radians per position of each pair of features.

    Wavelengths beyond `rope_context / rope_low` are stretched by `rope_factor`, those
    below `rope_context / rope_high` are kept, with a ramp between (Llama 3.1).
    """
    exponent = np.arange(0, spec.head_dim, 2) / spec.head_dim
    frequency = spec.rope_theta**-exponent
    turns = spec.rope_context * frequency / (2 * np.pi)
    keep = np.clip((turns - spec.rope_low) / (spec.rope_high - spec.rope_low), 0, 1)
    scaled = (1 - keep) * frequency / spec.rope_factor + keep * frequency
    return scaled.astype(np.float32)


KEYS = Keys(
    read=frozenset(
        [
            "num_hidden_layers",
            "hidden_size",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "intermediate_size",
            "vocab_size",
            "max_position_embeddings",
            "rms_norm_eps",
            "hidden_act",
            "rope_theta",
            "rope_scaling",
            "rope_parameters",
            "tie_word_embeddings",
        ]
    ),
    fixed={
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "rope_interleaved": (False,),
        "partial_rotary_factor": (1.0, None),
    },
    ignored=frozenset({"attention_dropout", "is_llama_config", "pretraining_tp"}),
)
# Spec field of each parameter of the llama3 scaling.
LLAMA3 = {
    "factor": "rope_factor",
    "low_freq_factor": "rope_low",
    "high_freq_factor": "rope_high",
    "original_max_position_embeddings": "rope_context",
}
KINDS = ("rope_type", "type")


def from_config(config: Mapping[str, Any], path: str) -> LlamaSpec:
    """Reads a Hugging Face config, with the keys of transformers 4 or 5."""
    KEYS.check(config, path)
    embed = need(config, "hidden_size", path)
    heads = need(config, "num_attention_heads", path)
    kv_heads = config.get("num_key_value_heads") or heads
    divide(heads, kv_heads, path)
    return LlamaSpec(
        layers=need(config, "num_hidden_layers", path),
        embed=embed,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=config.get("head_dim") or divide(embed, heads, path),
        mlp=need(config, "intermediate_size", path),
        vocab=need(config, "vocab_size", path),
        context=need(config, "max_position_embeddings", path),
        eps=need(config, "rms_norm_eps", path),
        activation=activation_name(config.get("hidden_act", "silu"), path),
        tied=config.get("tie_word_embeddings", False),
        **rope(config, path),
    )


def rope(config: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Reads `rope_theta` and `rope_scaling`, or `rope_parameters`."""
    both = [dict(config.get(key) or {}) for key in ("rope_parameters", "rope_scaling")]
    thetas = [one.pop("rope_theta", None) for one in both]
    theta = agreed([*thetas, config.get("rope_theta")], "rope_theta", path) or 10000.0
    for one in both:
        # Configs of 2024 spell the kind twice.
        kind = agreed([one.pop(key, None) for key in KINDS], "/".join(KINDS), path)
        if kind is not None:
            one["kind"] = kind
    rope = agreed(both, "rope_parameters and rope_scaling", path) or {}
    kind = rope.pop("kind", None)
    spec = {"rope_theta": float(theta)}
    if kind in (None, "default") and not rope:
        return spec
    if kind != "llama3":
        kind = "missing" if kind is None else kind
        raise LoadError(
            f"{path}: rope scaling of type {kind} with {rope} is not supported, only "
            "'default' and 'llama3'."
        )
    for key, field in LLAMA3.items():
        spec[field] = need(rope, key, f"{path}: rope scaling")
    if unknown := sorted(rope.keys() - LLAMA3.keys()):
        raise LoadError(f"{path}: unknown key '{unknown[0]}' in the rope scaling.")
    return spec


def agreed(values: Sequence[Any], name: str, path: str) -> Any:
    """Returns the value that a config gives once or more, `None` if it gives none."""
    given = [value for value in values if value]
    for value in given:
        if value != given[0]:
            raise LoadError(
                f"{path}: {name} is given twice, as {given[0]} and as {value}: leave "
                "out the wrong one."
            )
    return given[0] if given else None


def table(spec: LlamaSpec) -> Table:
    """Names in Hugging Face files; matrices are [out, in]."""
    attention, mlp = "model.layers.{layer}.self_attn.", "model.layers.{layer}.mlp."
    names = {
        "embedding": "model.embed_tokens.weight",
        "norm": "model.norm.weight",
        "head": "lm_head.weight",
        "norm_1": "model.layers.{layer}.input_layernorm.weight",
        "norm_2": "model.layers.{layer}.post_attention_layernorm.weight",
        **{x: f"{attention}{x}_proj.weight" for x in "qkvo"},
        **{x: f"{mlp}{x}_proj.weight" for x in ("gate", "up", "down")},
    }
    return Table(
        rules=rules(spec, names, interleaved=False),
        ignored=(r".*rotary_emb\.inv_freq",),
        same={names["head"]: names["embedding"]} if spec.tied else {},
    )


def from_gguf(gguf: Gguf) -> LlamaSpec:
    """Reads GGUF metadata."""
    path = str(gguf.path)
    number = lambda key, *default: gguf.metadata(f"llama.{key}", *default)  # noqa: E731
    check_gguf(gguf, "llama", GGUF_KEYS)
    embed, heads = number("embedding_length"), number("attention.head_count")
    head_dim = number("attention.key_length", embed // heads)
    for key in ("rope.dimension_count", "attention.value_length"):
        if number(key, head_dim) != head_dim:
            raise LoadError(
                f"{path}: 'llama.{key}' is {number(key)}, only {head_dim}, the size of "
                "a head, is supported."
            )
    return LlamaSpec(
        layers=number("block_count"),
        embed=embed,
        heads=heads,
        kv_heads=number("attention.head_count_kv", heads),
        head_dim=head_dim,
        mlp=number("feed_forward_length"),
        vocab=gguf.shapes.get("token_embd.weight", (0,))[0],
        context=number("context_length"),
        rope_theta=float(number("rope.freq_base", 10000.0)),
        eps=short(number("attention.layer_norm_rms_epsilon")),
        tied="output.weight" not in gguf.shapes,
    )


GGUF_KEYS = frozenset(
    [
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "rope.freq_base",
        "rope.dimension_count",
        "vocab_size",
    ]
)


def gguf_table(spec: LlamaSpec) -> Table:
    """Names in GGUF files; the rows of Q and K stand in another order there."""
    names = {
        "embedding": "token_embd.weight",
        "norm": "output_norm.weight",
        "head": "output.weight",
        "norm_1": "blk.{layer}.attn_norm.weight",
        "norm_2": "blk.{layer}.ffn_norm.weight",
        **{x: f"blk.{{layer}}.attn_{x}.weight" for x in "qkv"},
        "o": "blk.{layer}.attn_output.weight",
        **{x: f"blk.{{layer}}.ffn_{x}.weight" for x in ("gate", "up", "down")},
    }
    # Files of scaled models hold what each frequency is divided by.
    stretch = Rule(
        "rope_freqs.weight",
        (spec.head_dim // 2,),
        {FREQUENCY: lambda x: np.tile(frequencies(spec) / x, (spec.layers, 1))},
    )
    return Table(rules=rules(spec, names, interleaved=True), optional=(stretch,))


def rules(
    spec: LlamaSpec, names: Mapping[str, str], *, interleaved: bool
) -> tuple[Rule, ...]:
    """Rules of the model, for either kind of file."""
    embed, mlp, width = spec.embed, spec.mlp, spec.heads * spec.head_dim
    kv_width = spec.kv_heads * spec.head_dim

    def reads(heads: int, rotated: bool) -> Any:
        def make(x: np.ndarray) -> np.ndarray:
            x = x.reshape(heads, spec.head_dim, embed)
            if rotated and interleaved:
                # llama.cpp rotates neighbours: feature i and i + head_dim / 2 are
                # its features 2i and 2i + 1.
                x = x.reshape(heads, -1, 2, embed).swapaxes(1, 2)
                x = x.reshape(heads, spec.head_dim, embed)
            return x.transpose(2, 0, 1)

        return make

    def writes(x: np.ndarray) -> np.ndarray:
        return x.T.reshape(spec.heads, spec.head_dim, embed)

    turn = lambda x: x.T  # noqa: E731
    head = (names["head"], (spec.vocab, embed), "unembedding.weight", same)
    rows = (
        (names["embedding"], (spec.vocab, embed), "embedding.weight", same),
        (names["norm"], (embed,), "norm.weight", same),
        *(() if spec.tied else (head,)),
        (names["norm_1"], (embed,), "blocks.norm_1.weight", same),
        (names["norm_2"], (embed,), "blocks.norm_2.weight", same),
        (names["q"], (width, embed), "blocks.attention.w_q", reads(spec.heads, True)),
        *(
            (names[x], (kv_width, embed), f"blocks.attention.w_{x}", make)
            for x, make in (
                ("k", reads(spec.kv_heads, True)),
                ("v", reads(spec.kv_heads, False)),
            )
        ),
        (names["o"], (embed, width), "blocks.attention.w_o", writes),
        (names["gate"], (mlp, embed), "blocks.mlp.w_gate", turn),
        (names["up"], (mlp, embed), "blocks.mlp.w_in", turn),
        (names["down"], (embed, mlp), "blocks.mlp.w_out", turn),
    )
    return tuple(Rule(name, shape, {leaf: make}) for name, shape, leaf, make in rows)


def smollm2(layers: int, embed: int, heads: int, kv_heads: int, mlp: int) -> LlamaSpec:
    """A SmolLM2 (Allal et al. 2025, arXiv:2502.02737)."""
    return LlamaSpec(
        layers=layers,
        embed=embed,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=64,
        mlp=mlp,
        vocab=49152,
        context=8192,
        rope_theta=130000.0 if layers == 24 else 100000.0,
    )


PRESETS = {
    "smollm2-135m": Preset(smollm2(30, 576, 9, 3, 1536), "HuggingFaceTB/SmolLM2-135M"),
    "smollm2-360m": Preset(smollm2(32, 960, 15, 5, 2560), "HuggingFaceTB/SmolLM2-360M"),
    "smollm2-1.7b": Preset(
        smollm2(24, 2048, 32, 32, 8192), "HuggingFaceTB/SmolLM2-1.7B"
    ),
    "llama-3.2-1b": Preset(
        LlamaSpec(
            layers=16,
            embed=2048,
            heads=32,
            kv_heads=8,
            head_dim=64,
            mlp=8192,
            vocab=128256,
            context=131072,
            rope_theta=500000.0,
            rope_factor=32.0,
        ),
        "meta-llama/Llama-3.2-1B",
    ),
}
LLAMA = Family(
    name="llama",
    spec=LlamaSpec,
    init=init,
    presets=PRESETS,
    computed=computed,
    from_config=from_config,
    table=table,
    gguf_name="llama",
    from_gguf=from_gguf,
    gguf_table=gguf_table,
)
