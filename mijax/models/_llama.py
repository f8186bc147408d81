"""Llama and SmolLM2 (Touvron et al. 2023, arXiv:2302.13971).

RMSNorm, rotary positions, gated MLP, grouped-query attention, no biases.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax.models._config import ACTIVATIONS
from mijax.models._family import Family, Preset, Rule, Table, same
from mijax.models._init import Normal, rms_norm
from mijax.models._llama_spec import LlamaSpec, from_config, from_gguf
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
