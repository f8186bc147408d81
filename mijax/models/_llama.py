"""Llama and SmolLM2 (Touvron et al. 2023, arXiv:2302.13971).

RMSNorm, rotary positions, gated MLP, grouped-query attention, no biases.
"""

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax.models._decoder import FREQUENCY, rms_decoder
from mijax.models._family import Family, Preset, Rule, Table
from mijax.models._leaves import GGUF_NAMES, NAMES, halves, rules, tied_head
from mijax.models._llama_spec import LlamaSpec, from_config, from_gguf
from mijax.models._rope import frequencies, stretched
from mijax.nn import Transformer


def init(spec: LlamaSpec, key: PRNGKeyArray, dtype: DTypeLike) -> Transformer:
    """Draws weights of standard deviation 0.02."""
    return rms_decoder(spec, key, dtype, computed(spec))


def computed(spec: LlamaSpec) -> dict[str, np.ndarray]:
    """The rotary frequencies of every layer."""
    return {FREQUENCY: np.tile(scaled(spec), (spec.layers, 1))}


def scaled(spec: LlamaSpec) -> np.ndarray:
    """Radians per position of each pair of features."""
    frequency = stretched(
        frequencies(spec.rope_theta, spec.head_dim),
        factor=spec.rope_factor,
        low=spec.rope_low,
        high=spec.rope_high,
        context=spec.rope_context,
    )
    return frequency.astype(np.float32)


def table(spec: LlamaSpec) -> Table:
    """Names in Hugging Face files."""
    return Table(
        rules=rules(spec, NAMES),
        ignored=(r".*rotary_emb\.inv_freq",),
        same=tied_head(spec, NAMES),
    )


def gguf_table(spec: LlamaSpec) -> Table:
    """Names in GGUF files, where the rotation turns neighbors."""
    # Files of scaled models hold what each frequency is divided by.
    stretch = Rule(
        "rope_freqs.weight",
        (spec.head_dim // 2,),
        {FREQUENCY: lambda x: np.tile(scaled(spec) / x, (spec.layers, 1))},
    )
    return Table(rules=rules(spec, GGUF_NAMES, order=halves), optional=(stretch,))


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


def llama3(layers: int, embed: int, heads: int, mlp: int) -> LlamaSpec:
    """A Llama 3.1, or 3.2 if it is small: those stretch further, and tie embeddings."""
    small = embed < 4096
    return LlamaSpec(
        layers=layers,
        embed=embed,
        heads=heads,
        kv_heads=8,
        head_dim=embed // heads,
        mlp=mlp,
        vocab=128256,
        context=131072,
        rope_theta=500000.0,
        rope_factor=32.0 if small else 8.0,
        tied=small,
    )


PRESETS = {
    "smollm2-135m": Preset(smollm2(30, 576, 9, 3, 1536), "HuggingFaceTB/SmolLM2-135M"),
    "smollm2-360m": Preset(smollm2(32, 960, 15, 5, 2560), "HuggingFaceTB/SmolLM2-360M"),
    "smollm2-1.7b": Preset(
        smollm2(24, 2048, 32, 32, 8192), "HuggingFaceTB/SmolLM2-1.7B"
    ),
    "llama-2-7b": Preset(
        LlamaSpec(
            layers=32,
            embed=4096,
            heads=32,
            kv_heads=32,
            head_dim=128,
            mlp=11008,
            vocab=32000,
            context=4096,
            tied=False,
        ),
        "meta-llama/Llama-2-7b-hf",
    ),
    "llama-3.1-8b": Preset(llama3(32, 4096, 32, 14336), "meta-llama/Llama-3.1-8B"),
    "llama-3.2-1b": Preset(llama3(16, 2048, 32, 8192), "meta-llama/Llama-3.2-1B"),
    "llama-3.2-3b": Preset(llama3(28, 3072, 24, 8192), "meta-llama/Llama-3.2-3B"),
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
