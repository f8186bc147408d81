"""GPT-J (Wang and Komatsuzaki 2021).

Attention and MLP read one norm of the same stream, side by side: the model has a copy
of the norm for each. Files rotate neighbors; features of queries and keys are put into
the order of halves, which no score depends on.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax.io import NonNegative, Only, Positive, Size
from mijax.models._config import Activation, HubConfig, read_hub_config
from mijax.models._decoder import PlainSpec, layer_norm_decoder
from mijax.models._family import Family, Preset, Table
from mijax.models._leaves import halves, plain_names, rules, shared_norm
from mijax.models._phi import computed
from mijax.nn import ParallelBlock, Transformer


@dataclasses.dataclass(frozen=True)
class GPTJSpec(PlainSpec):
    """Sizes of a GPT-J; the first `rotated` features of a head are rotated."""

    rotated: Size = 64
    rope_theta: Positive = 10000.0
    tied: bool = False


def init(spec: GPTJSpec, key: PRNGKeyArray, dtype: DTypeLike) -> Transformer:
    """Draws weights of standard deviation 0.02."""
    return layer_norm_decoder(
        spec, key, dtype, kind=ParallelBlock, leaves=computed(spec), head_bias=True
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPTJConfig(HubConfig):
    """Keys of config.json."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        [
            "attn_pdrop",
            "embd_pdrop",
            "resid_pdrop",
            "rotary",
            "scale_attn_weights",
            "summary_activation",
            "summary_first_dropout",
            "summary_proj_to_labels",
            "summary_type",
            "summary_use_proj",
        ]
    )

    n_layer: Size
    n_embd: Size
    n_head: Size
    n_inner: Size | None = None
    vocab_size: Size
    n_positions: Size
    rotary_dim: Size
    layer_norm_epsilon: NonNegative = 1e-5
    activation_function: Activation = "gelu_new"
    tie_word_embeddings: Annotated[bool, Only(False)] = False


def from_config(config: Mapping[str, Any], path: str) -> GPTJSpec:
    """Reads a Hugging Face config."""
    found = read_hub_config(GPTJConfig, config, path)
    return GPTJSpec(
        layers=found.n_layer,
        embed=found.n_embd,
        heads=found.n_head,
        mlp=found.n_inner or 4 * found.n_embd,
        vocab=found.vocab_size,
        context=found.n_positions,
        rotated=found.rotary_dim,
        eps=found.layer_norm_epsilon,
        activation=found.activation_function,
    )


PARTS = {
    "norm_1": "ln_1",
    "q": "attn.q_proj",
    "k": "attn.k_proj",
    "v": "attn.v_proj",
    "o": "attn.out_proj",
    "in": "mlp.fc_in",
    "out": "mlp.fc_out",
}
TOP = {
    "embedding.weight": "transformer.wte.weight",
    "norm.weight": "transformer.ln_f.weight",
    "norm.bias": "transformer.ln_f.bias",
    "unembedding.weight": "lm_head.weight",
    "unembedding.bias": "lm_head.bias",
}
# Attention has no biases.
NAMES = {
    leaf: name
    for leaf, name in plain_names(TOP, "transformer.h.{layer}.", PARTS).items()
    if "attention.b_" not in leaf
}


def table(spec: GPTJSpec) -> Table:
    """Names in Hugging Face files."""

    def order(x: np.ndarray) -> np.ndarray:
        turned, rest = np.split(x, [spec.rotated], axis=1)
        return np.concatenate([halves(turned), rest], axis=1)

    return Table(
        rules=shared_norm(rules(spec, NAMES, order=order)),
        ignored=(r".*\.attn\.(bias|masked_bias)",),
    )


PRESETS = {
    "gpt-j-6b": Preset(
        GPTJSpec(layers=28, embed=4096, heads=16, mlp=16384, vocab=50400, context=2048),
        "EleutherAI/gpt-j-6b",
    ),
}
GPTJ = Family(
    name="gptj",
    spec=GPTJSpec,
    init=init,
    presets=PRESETS,
    computed=computed,
    from_config=from_config,
    table=table,
)
