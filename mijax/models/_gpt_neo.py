"""GPT-Neo (Black et al. 2021) and TinyStories (Eldan and Li 2023, arXiv:2305.07759).

A GPT-2 whose scores are not scaled, with windows in every second layer.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax._errors import LoadError
from mijax.io import Indices, NonNegative, Size
from mijax.models._config import Activation, HubConfig, read_hub_config
from mijax.models._decoder import PlainSpec, layer_norm_decoder, window_leaf
from mijax.models._family import Family, Preset, Table
from mijax.models._leaves import plain_names, rules, tied_head
from mijax.nn import Transformer


@dataclasses.dataclass(frozen=True)
class GPTNeoSpec(PlainSpec):
    """Sizes of a GPT-Neo; `windows` has a number of tokens for each layer, 0 for all.

    Without windows every layer reads all tokens.
    """

    windows: Indices = ()


def init(spec: GPTNeoSpec, key: PRNGKeyArray, dtype: DTypeLike) -> Transformer:
    """Draws weights of standard deviation 0.02."""
    bias = jnp.zeros((spec.layers, spec.embed), dtype)
    return layer_norm_decoder(
        spec,
        key,
        dtype,
        leaves=computed(spec),
        positions=spec.context,
        fields={"b_o": bias, "scale": 1.0},
    )


def computed(spec: GPTNeoSpec) -> dict[str, np.ndarray]:
    """Windows of every layer."""
    return window_leaf(spec.windows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPTNeoConfig(HubConfig):
    """Keys of config.json."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        [
            "attention_dropout",
            "attention_types",
            "classifier_dropout",
            "embed_dropout",
            "resid_dropout",
            "summary_activation",
            "summary_first_dropout",
            "summary_proj_to_labels",
            "summary_type",
            "summary_use_proj",
        ]
    )

    num_layers: Size
    hidden_size: Size
    num_heads: Size
    intermediate_size: Size | None = None
    vocab_size: Size
    max_position_embeddings: Size
    layer_norm_epsilon: NonNegative = 1e-5
    activation_function: Activation = "gelu_new"
    attention_layers: list[str]
    window_size: Size = 256
    tie_word_embeddings: bool = True


def from_config(config: Mapping[str, Any], path: str) -> GPTNeoSpec:
    """Reads a Hugging Face config."""
    found = read_hub_config(GPTNeoConfig, config, path)
    kinds = found.attention_layers
    if set(kinds) - {"global", "local"} or len(kinds) != found.num_layers:
        raise LoadError(
            f"{path}: 'attention_layers' is {kinds!r:.60}, expected 'global' or "
            f"'local' for each of {found.num_layers} layers."
        )
    return GPTNeoSpec(
        layers=found.num_layers,
        embed=found.hidden_size,
        heads=found.num_heads,
        mlp=found.intermediate_size or 4 * found.hidden_size,
        vocab=found.vocab_size,
        context=found.max_position_embeddings,
        eps=found.layer_norm_epsilon,
        activation=found.activation_function,
        tied=found.tie_word_embeddings,
        windows=tuple(found.window_size if k == "local" else 0 for k in kinds),
    )


PARTS = {
    "norm_1": "ln_1",
    "norm_2": "ln_2",
    "q": "attn.attention.q_proj",
    "k": "attn.attention.k_proj",
    "v": "attn.attention.v_proj",
    "o": "attn.attention.out_proj",
    "in": "mlp.c_fc",
    "out": "mlp.c_proj",
}
TOP = {
    "embedding.weight": "transformer.wte.weight",
    "positions.weight": "transformer.wpe.weight",
    "norm.weight": "transformer.ln_f.weight",
    "norm.bias": "transformer.ln_f.bias",
    "unembedding.weight": "lm_head.weight",
}
READS = tuple(f"blocks.attention.b_{x}" for x in "qkv")
NAMES = {
    leaf: name
    for leaf, name in plain_names(TOP, "transformer.h.{layer}.", PARTS).items()
    if leaf not in READS
}


def table(spec: GPTNeoSpec) -> Table:
    """Names in Hugging Face files."""
    return Table(
        rules=rules(spec, NAMES),
        ignored=(r".*\.attn\.attention\.(bias|masked_bias)",),
        same=tied_head(spec, NAMES),
    )


PRESETS = {
    "gpt-neo-125m": Preset(
        GPTNeoSpec(
            layers=12,
            embed=768,
            heads=12,
            mlp=3072,
            vocab=50257,
            context=2048,
            windows=(0, 256) * 6,
        ),
        "EleutherAI/gpt-neo-125m",
    ),
    "tinystories-33m": Preset(
        GPTNeoSpec(
            layers=4,
            embed=768,
            heads=16,
            mlp=3072,
            vocab=50257,
            context=2048,
            windows=(0, 256) * 2,
        ),
        "roneneldan/TinyStories-33M",
    ),
}
GPT_NEO = Family(
    name="gpt_neo",
    spec=GPTNeoSpec,
    init=init,
    presets=PRESETS,
    computed=computed,
    from_config=from_config,
    table=table,
)
