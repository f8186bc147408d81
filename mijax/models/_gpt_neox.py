"""GPT-NeoX and Pythia (Biderman et al. 2023, arXiv:2304.01373).

Attention and MLP read the same stream, side by side. A quarter of the features of a
head is rotated. LayerNorm and biases; queries, keys and values of a head are stored
together.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax.io import Gguf, Key, NonNegative, Only, Positive, Size
from mijax.models._config import Activation, HubConfig, divide, read_hub_config
from mijax.models._decoder import FREQUENCY, PlainSpec, biases, layer_norm_decoder
from mijax.models._decoder_config import read_fields
from mijax.models._family import Family, Preset, Rule, Table, short
from mijax.models._leaves import rules, tied_head
from mijax.models._rope import frequencies, read_rope
from mijax.nn import Block, ParallelBlock, Transformer


@dataclasses.dataclass(frozen=True)
class GPTNeoXSpec(PlainSpec):
    """Sizes of a GPT-NeoX; the first `rotated` features of a head are rotated.

    `parallel` says whether attention and MLP read the same stream.
    """

    rotated: Size = 16
    rope_theta: Positive = 10000.0
    activation: Activation = "gelu"
    parallel: bool = True
    bias: bool = True
    tied: bool = False


def init(spec: GPTNeoXSpec, key: PRNGKeyArray, dtype: DTypeLike) -> Transformer:
    """Draws weights of standard deviation 0.02."""
    return layer_norm_decoder(
        spec,
        key,
        dtype,
        kind=ParallelBlock if spec.parallel else Block,
        leaves=computed(spec),
        fields=biases(spec, dtype, out=True) if spec.bias else {},
    )


def computed(spec: GPTNeoXSpec) -> dict[str, np.ndarray]:
    """Rotary frequencies of every layer."""
    frequency = frequencies(spec.rope_theta, spec.rotated).astype(np.float32)
    return {FREQUENCY: np.tile(frequency, (spec.layers, 1))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPTNeoXConfig(HubConfig):
    """Keys of config.json, of transformers 4 or 5."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        ["attention_dropout", "hidden_dropout", "classifier_dropout"]
    )

    num_hidden_layers: Size
    hidden_size: Size
    num_attention_heads: Size
    intermediate_size: Size
    vocab_size: Size
    max_position_embeddings: Size
    layer_norm_eps: NonNegative = 1e-5
    hidden_act: Activation = "gelu"
    rotary_pct: Positive | None = None
    rotary_emb_base: Positive | None = None
    rope_theta: Positive | None = None
    partial_rotary_factor: Positive | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    use_parallel_residual: bool = True
    attention_bias: bool = True
    tie_word_embeddings: bool = False


def from_config(config: Mapping[str, Any], path: str) -> GPTNeoXSpec:
    """Reads a Hugging Face config."""
    found = read_hub_config(GPTNeoXConfig, config, path)
    head_dim = divide(found.hidden_size, found.num_attention_heads, path)
    given = (found.rope_parameters or {}).get("partial_rotary_factor")
    fraction = given or found.partial_rotary_factor or found.rotary_pct or 0.25
    theta = found.rotary_emb_base or 10000.0
    return GPTNeoXSpec(
        layers=found.num_hidden_layers,
        embed=found.hidden_size,
        heads=found.num_attention_heads,
        mlp=found.intermediate_size,
        vocab=found.vocab_size,
        context=found.max_position_embeddings,
        rotated=int(head_dim * fraction),
        **read_rope(found, path, {}, theta=theta, partial=True),
        eps=found.layer_norm_eps,
        activation=found.hidden_act,
        parallel=found.use_parallel_residual,
        bias=found.attention_bias,
        tied=found.tie_word_embeddings,
    )


LAYER = "gpt_neox.layers.{layer}."
NAMES = {
    "embedding.weight": "gpt_neox.embed_in.weight",
    "norm.weight": "gpt_neox.final_layer_norm.weight",
    "norm.bias": "gpt_neox.final_layer_norm.bias",
    "unembedding.weight": "embed_out.weight",
    "blocks.norm_1.weight": f"{LAYER}input_layernorm.weight",
    "blocks.norm_1.bias": f"{LAYER}input_layernorm.bias",
    "blocks.norm_2.weight": f"{LAYER}post_attention_layernorm.weight",
    "blocks.norm_2.bias": f"{LAYER}post_attention_layernorm.bias",
    "blocks.attention.w_o": f"{LAYER}attention.dense.weight",
    "blocks.attention.b_o": f"{LAYER}attention.dense.bias",
    "blocks.mlp.w_in": f"{LAYER}mlp.dense_h_to_4h.weight",
    "blocks.mlp.b_in": f"{LAYER}mlp.dense_h_to_4h.bias",
    "blocks.mlp.w_out": f"{LAYER}mlp.dense_4h_to_h.weight",
    "blocks.mlp.b_out": f"{LAYER}mlp.dense_4h_to_h.bias",
}


def table(spec: GPTNeoXSpec) -> Table:
    """Names in Hugging Face files; a head's queries, keys and values are neighbors."""
    name = f"{LAYER}attention.query_key_value"
    return Table(
        rules=(*rules(spec, present(spec, NAMES)), *fused(spec, name, by_head=True)),
        ignored=(
            r".*\.attention\.(bias|masked_bias)",
            r".*rotary_emb\.inv_freq",
        ),
        same=tied_head(spec, NAMES),
    )


def present(spec: GPTNeoXSpec, names: Mapping[str, str]) -> dict[str, str]:
    """Return the names but for that of a bias that the model does not have."""
    return {k: v for k, v in names.items() if spec.bias or not k.endswith(".b_o")}


def fused(
    spec: Any, name: str, *, by_head: bool, bias: bool | None = None
) -> list[Rule]:
    """Return the rules of queries, keys and values in one tensor.

    Args:
        spec: the sizes.
        name: the tensor's, without `.weight`.
        by_head: whether the three of a head are neighbors, or all queries come first.
        bias: whether there is a bias; as the spec says by default.

    Returns:
        A rule for the weight, and one for the bias if there is one.
    """
    heads, head_dim = spec.heads, spec.embed // spec.heads
    split = (heads, 3, head_dim) if by_head else (3, heads, head_dim)

    def part(i: int, x: np.ndarray) -> np.ndarray:
        return x.reshape(*split, *x.shape[1:]).take(i, axis=1 if by_head else 0)

    def weight(i: int) -> Any:
        return lambda x: part(i, x).transpose(2, 0, 1)

    def shift(i: int) -> Any:
        return lambda x: part(i, x)

    width = 3 * heads * head_dim
    found = [
        Rule(
            f"{name}.weight",
            (width, spec.embed),
            {f"blocks.attention.w_{x}": weight(i) for i, x in enumerate("qkv")},
        )
    ]
    if getattr(spec, "bias", True) if bias is None else bias:
        into = {f"blocks.attention.b_{x}": shift(i) for i, x in enumerate("qkv")}
        found.append(Rule(f"{name}.bias", (width,), into))
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPTNeoXFields:
    """Keys of GGUF metadata."""

    layers: Annotated[Size, Key("block_count")]
    embed: Annotated[Size, Key("embedding_length")]
    heads: Annotated[Size, Key("attention.head_count")]
    mlp: Annotated[Size, Key("feed_forward_length")]
    context: Annotated[Size, Key("context_length")]
    rotated: Annotated[Size, Key("rope.dimension_count")]
    parallel: Annotated[bool, Key("use_parallel_residual")] = True
    eps: Annotated[NonNegative, Key("attention.layer_norm_epsilon")]
    theta: Annotated[Positive, Key("rope.freq_base")] = 10000.0
    vocab: Annotated[Size | None, Key("vocab_size")] = None
    bias_alibi: Annotated[float, Only(0.0), Key("attention.max_alibi_bias")] = 0.0


def from_gguf(gguf: Gguf) -> GPTNeoXSpec:
    """Reads GGUF metadata."""
    found = read_fields(gguf, GPTNeoXFields, "gptneox")
    return GPTNeoXSpec(
        layers=found.layers,
        embed=found.embed,
        heads=found.heads,
        mlp=found.mlp,
        vocab=found.vocab or gguf.shapes.get("token_embd.weight", (0,))[0],
        context=found.context,
        rotated=found.rotated,
        rope_theta=float(found.theta),
        eps=short(found.eps),
        parallel=found.parallel,
        bias="blk.0.attn_qkv.bias" in gguf.shapes,
        tied="output.weight" not in gguf.shapes,
    )


PARTS = {
    "norm_1": "attn_norm",
    "norm_2": "ffn_norm",
    "attention.w_o": "attn_output.weight",
    "attention.b_o": "attn_output.bias",
    "mlp.w_in": "ffn_up.weight",
    "mlp.b_in": "ffn_up.bias",
    "mlp.w_out": "ffn_down.weight",
    "mlp.b_out": "ffn_down.bias",
}


def gguf_table(spec: GPTNeoXSpec) -> Table:
    """Names in GGUF files, where all queries come first, then keys, then values."""
    names = {
        "embedding.weight": "token_embd.weight",
        "norm.weight": "output_norm.weight",
        "norm.bias": "output_norm.bias",
        "unembedding.weight": "output.weight",
    }
    for leaf, name in PARTS.items():
        for end in (".weight", ".bias") if leaf.startswith("norm") else ("",):
            names[f"blocks.{leaf}{end}"] = f"blk.{{layer}}.{name}{end}"
    qkv = fused(spec, "blk.{layer}.attn_qkv", by_head=False)
    return Table(rules=(*rules(spec, present(spec, names)), *qkv))


def pythia(layers: int, embed: int, heads: int, *, vocab: int = 50304) -> GPTNeoXSpec:
    """A Pythia."""
    return GPTNeoXSpec(
        layers=layers,
        embed=embed,
        heads=heads,
        mlp=4 * embed,
        vocab=vocab,
        context=2048,
        rotated=embed // heads // 4,
    )


PRESETS = {
    "pythia-14m": Preset(pythia(6, 128, 4), "EleutherAI/pythia-14m"),
    "pythia-70m": Preset(pythia(6, 512, 8), "EleutherAI/pythia-70m"),
    "pythia-160m": Preset(pythia(12, 768, 12), "EleutherAI/pythia-160m"),
    "pythia-410m": Preset(pythia(24, 1024, 16), "EleutherAI/pythia-410m"),
    "pythia-1b": Preset(pythia(16, 2048, 8), "EleutherAI/pythia-1b"),
    "pythia-1.4b": Preset(pythia(24, 2048, 16), "EleutherAI/pythia-1.4b"),
    "pythia-2.8b": Preset(pythia(32, 2560, 32), "EleutherAI/pythia-2.8b"),
    "pythia-6.9b": Preset(pythia(32, 4096, 32, vocab=50432), "EleutherAI/pythia-6.9b"),
}
GPT_NEOX = Family(
    name="gpt_neox",
    spec=GPTNeoXSpec,
    init=init,
    presets=PRESETS,
    computed=computed,
    from_config=from_config,
    table=table,
    gguf_name="gptneox",
    from_gguf=from_gguf,
    gguf_table=gguf_table,
)
