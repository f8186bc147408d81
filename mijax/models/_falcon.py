"""Falcon (Almazrouei et al. 2023, arXiv:2311.16867).

Attention and MLP read the same stream, side by side, under one norm or two. The few key
and value heads are stored with the queries that read them. RefinedWeb models compute
attention and MLP in turn, and have ALiBi.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax._errors import LoadError
from mijax.io import NonNegative, Only, Size
from mijax.models._bloom import slopes
from mijax.models._config import Activation, HubConfig, divide, read_hub_config
from mijax.models._decoder import (
    FREQUENCY,
    SLOPE,
    DecoderSpec,
    biases,
    layer_norm_decoder,
)
from mijax.models._family import Family, Preset, Rule, Table
from mijax.models._leaves import plain_names, rules, shared_norm, tied_head
from mijax.models._rope import frequencies, read_rope
from mijax.nn import Block, ParallelBlock, RoundedAlibi, Transformer


@dataclasses.dataclass(frozen=True)
class FalconSpec(DecoderSpec):
    """Sizes of a Falcon.

    `parallel` says whether attention and MLP read the same stream, `norms` how many
    norms read it in a block; one norm is there as two copies. With `alibi` scores have
    a bias by distance in place of a rotation.
    """

    activation: Activation = "gelu"
    parallel: bool = True
    norms: Size = 1
    alibi: bool = False
    bias: bool = False


def init(spec: FalconSpec, key: PRNGKeyArray, dtype: DTypeLike) -> Transformer:
    """Draws weights of standard deviation 0.02."""
    model = layer_norm_decoder(
        spec,
        key,
        dtype,
        kind=ParallelBlock if spec.parallel else Block,
        leaves=computed(spec),
        fields=biases(spec, dtype, out=True) if spec.bias else {},
    )
    blocks: Any = model.blocks
    if spec.alibi:
        alibi = RoundedAlibi(blocks.attention.bias.slope, scale=spec.head_dim**-0.5)
        attention = dataclasses.replace(blocks.attention, bias=alibi)
        blocks = dataclasses.replace(blocks, attention=attention)
    if not spec.bias:
        mlp = dataclasses.replace(blocks.mlp, b_in=None, b_out=None)
        blocks = dataclasses.replace(blocks, mlp=mlp)
    return dataclasses.replace(model, blocks=blocks)


def computed(spec: FalconSpec) -> dict[str, np.ndarray]:
    """Rotary frequencies or slopes of every layer."""
    name, one = FREQUENCY, frequencies(spec.rope_theta, spec.head_dim)
    if spec.alibi:
        name, one = SLOPE, slopes(spec.heads)
    return {name: np.tile(one, (spec.layers, 1)).astype(np.float32)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FalconConfig(HubConfig):
    """Keys of config.json, of transformers 4 or 5."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        ["attention_dropout", "auto_map", "hidden_dropout"]
    )

    num_hidden_layers: Size
    hidden_size: Size
    num_attention_heads: Size
    num_kv_heads: Size | None = None
    vocab_size: Size
    max_position_embeddings: Size = 2048
    ffn_hidden_size: Size | None = None
    layer_norm_epsilon: NonNegative = 1e-5
    activation: Activation = "gelu"
    alibi: bool = False
    bias: bool = False
    multi_query: bool = True
    new_decoder_architecture: bool = False
    num_ln_in_parallel_attn: Size | None = None
    parallel_attn: bool = True
    apply_residual_connection_post_layernorm: Annotated[bool, Only(False)] = False
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    tie_word_embeddings: bool = True


def from_config(config: Mapping[str, Any], path: str) -> FalconSpec:
    """Reads a Hugging Face config."""
    found = read_hub_config(FalconConfig, config, path)
    embed, heads = found.hidden_size, found.num_attention_heads
    return FalconSpec(
        layers=found.num_hidden_layers,
        embed=embed,
        heads=heads,
        kv_heads=key_heads(found, path),
        head_dim=divide(embed, heads, path),
        mlp=found.ffn_hidden_size or 4 * embed,
        vocab=found.vocab_size,
        context=found.max_position_embeddings,
        **read_rope(found, path, {}),
        eps=found.layer_norm_epsilon,
        activation=found.activation,
        parallel=found.parallel_attn,
        norms=norms(found, path),
        alibi=found.alibi,
        bias=found.bias,
        tied=found.tie_word_embeddings,
    )


def key_heads(found: FalconConfig, path: str) -> int:
    """Return the number of key heads, which only the newer architecture names.

    Raises:
        LoadError: another number than the older architecture can have.
    """
    heads = found.num_attention_heads
    if found.new_decoder_architecture:
        return found.num_kv_heads or heads
    if found.multi_query:
        return 1
    if found.num_kv_heads not in (None, heads):
        raise LoadError(
            f"{path}: 'num_kv_heads' is {found.num_kv_heads}, but without "
            f"'multi_query' and 'new_decoder_architecture' there are {heads}."
        )
    return heads


def norms(found: FalconConfig, path: str) -> int:
    """Return the number of norms of a block.

    Raises:
        LoadError: a number that the architecture does not compute.
    """
    newer = found.new_decoder_architecture
    count = found.num_ln_in_parallel_attn or (2 if newer else 1)
    if count > (2 if newer else 1) or (newer and not found.parallel_attn):
        raise LoadError(
            f"{path}: 'num_ln_in_parallel_attn' {count} with 'parallel_attn' "
            f"{found.parallel_attn} and 'new_decoder_architecture' {newer} is not "
            "supported: two norms need both to be true, and a new architecture is "
            "parallel."
        )
    return count if found.parallel_attn else 2


LAYER = "transformer.h.{layer}."
TOP = {
    "embedding.weight": "transformer.word_embeddings.weight",
    "norm.weight": "transformer.ln_f.weight",
    "norm.bias": "transformer.ln_f.bias",
    "unembedding.weight": "lm_head.weight",
}
PARTS = {"o": "self_attention.dense", "in": "mlp.dense_h_to_4h"}
PARTS |= {"out": "mlp.dense_4h_to_h"}
# Names of norms by their number and whether attention and MLP are parallel.
NORMS = {
    (1, True): {"norm_1": "input_layernorm"},
    (2, True): {"norm_1": "ln_attn", "norm_2": "ln_mlp"},
    (2, False): {"norm_1": "input_layernorm", "norm_2": "post_attention_layernorm"},
}


def table(spec: FalconSpec) -> Table:
    """Names in Hugging Face files."""
    parts = NORMS[spec.norms, spec.parallel] | PARTS
    names = {
        leaf: name
        for leaf, name in plain_names(TOP, LAYER, parts).items()
        if spec.bias or ".b_" not in leaf
    }
    found = rules(spec, names)
    found = found if spec.norms == 2 else shared_norm(found)
    return Table(rules=(*found, *fused(spec)), same=tied_head(spec, TOP))


def fused(spec: FalconSpec) -> list[Rule]:
    """Return the rules of queries, keys and values in one tensor.

    The queries that share a key head come first, then their key and their value.
    """
    groups, each = spec.kv_heads, spec.heads // spec.kv_heads
    cuts = {"q": slice(each), "k": slice(each, each + 1), "v": slice(each + 1, None)}

    def part(cut: slice, x: np.ndarray) -> np.ndarray:
        split = x.reshape(groups, each + 2, spec.head_dim, *x.shape[1:])[:, cut]
        return split.reshape(-1, *split.shape[2:])

    def weight(cut: slice) -> Any:
        return lambda x: part(cut, x).transpose(2, 0, 1)

    def bias(cut: slice) -> Any:
        return lambda x: part(cut, x)

    name = f"{LAYER}self_attention.query_key_value"
    width = groups * (each + 2) * spec.head_dim
    weights = {f"blocks.attention.w_{x}": weight(cut) for x, cut in cuts.items()}
    found = [Rule(f"{name}.weight", (width, spec.embed), weights)]
    if spec.bias:
        into = {f"blocks.attention.b_{x}": bias(cut) for x, cut in cuts.items()}
        found.append(Rule(f"{name}.bias", (width,), into))
    return found


def falcon(layers: int, embed: int, kv_heads: int, **values: Any) -> FalconSpec:
    """A Falcon with heads of 64 features."""
    return FalconSpec(
        layers=layers,
        embed=embed,
        heads=embed // 64,
        kv_heads=kv_heads,
        head_dim=64,
        mlp=4 * embed,
        vocab=65024,
        context=2048,
        **values,
    )


PRESETS = {
    "falcon-7b": Preset(falcon(32, 4544, 1), "tiiuae/falcon-7b"),
    "falcon-40b": Preset(falcon(60, 8192, 8, norms=2), "tiiuae/falcon-40b"),
}
FALCON = Family(
    name="falcon",
    spec=FalconSpec,
    init=init,
    presets=PRESETS,
    computed=computed,
    from_config=from_config,
    table=table,
)
