"""GPT-2 (Radford et al. 2019): LayerNorm, learned positions, tied unembedding."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax.io import Gguf, Key, NonNegative, Only, Size
from mijax.models._config import (
    ACTIVATIONS,
    Activation,
    HubConfig,
    read_hub_config,
)
from mijax.models._family import Family, Preset, Rule, Table, same, short
from mijax.models._init import Normal, layer_norm
from mijax.nn import MLP, Attention, Block, Embedding, Transformer, Unembedding


@dataclasses.dataclass(frozen=True)
class GPT2Spec:
    """Sizes of a GPT-2."""

    layers: Size = 12
    embed: Size = 768
    heads: Size = 12
    mlp: Size = 3072
    vocab: Size = 50257
    context: Size = 1024
    eps: NonNegative = 1e-5
    activation: Activation = "gelu_new"
    tied: bool = True


def init(spec: GPT2Spec, key: PRNGKeyArray, dtype: DTypeLike) -> Transformer:
    """Draws weights as GPT-2 was initialised: std 0.02, less for what writes."""
    normal = Normal(key, dtype)
    n, embed, heads = spec.layers, spec.embed, spec.heads
    head_dim, residual = embed // heads, 0.02 / (2 * n) ** 0.5
    attention = Attention(
        w_q=normal(n, embed, heads, head_dim),
        w_k=normal(n, embed, heads, head_dim),
        w_v=normal(n, embed, heads, head_dim),
        w_o=normal(n, heads, head_dim, embed, scale=residual),
        b_q=jnp.zeros((n, heads, head_dim), dtype),
        b_k=jnp.zeros((n, heads, head_dim), dtype),
        b_v=jnp.zeros((n, heads, head_dim), dtype),
        b_o=jnp.zeros((n, embed), dtype),
    )
    mlp = MLP(
        w_in=normal(n, embed, spec.mlp),
        w_out=normal(n, spec.mlp, embed, scale=residual),
        b_in=jnp.zeros((n, spec.mlp), dtype),
        b_out=jnp.zeros((n, embed), dtype),
        activation=ACTIVATIONS[spec.activation],
    )
    norms = (layer_norm(embed, dtype, spec.eps, layers=n) for _ in range(2))
    return Transformer(
        embedding=Embedding(normal(spec.vocab, embed)),
        positions=Embedding(normal(spec.context, embed, scale=0.01)),
        blocks=Block(next(norms), attention, next(norms), mlp),
        norm=layer_norm(embed, dtype, spec.eps),
        unembedding=None if spec.tied else Unembedding(normal(spec.vocab, embed)),
        context=spec.context,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPT2Config(HubConfig):
    """Keys of config.json."""

    # The order of a product and dropout change rounding and training only.
    ignored: ClassVar[frozenset[str]] = frozenset(
        [
            "n_ctx",
            "reorder_and_upcast_attn",
            "attn_pdrop",
            "embd_pdrop",
            "resid_pdrop",
            "summary_type",
            "summary_use_proj",
            "summary_activation",
            "summary_proj_to_labels",
            "summary_first_dropout",
            "output_past",
        ]
    )

    n_layer: Size
    n_embd: Size
    n_head: Size
    n_inner: Size | None = None
    vocab_size: Size
    n_positions: Size
    layer_norm_epsilon: NonNegative = 1e-5
    activation_function: Activation = "gelu_new"
    tie_word_embeddings: bool = True
    scale_attn_weights: Annotated[bool, Only(True)] = True
    scale_attn_by_inverse_layer_idx: Annotated[bool, Only(False)] = False


def from_config(config: Mapping[str, Any], path: str) -> GPT2Spec:
    """Reads a Hugging Face config."""
    found = read_hub_config(GPT2Config, config, path)
    return GPT2Spec(
        layers=found.n_layer,
        embed=found.n_embd,
        heads=found.n_head,
        mlp=found.n_inner or 4 * found.n_embd,
        vocab=found.vocab_size,
        context=found.n_positions,
        eps=found.layer_norm_epsilon,
        activation=found.activation_function,
        tied=found.tie_word_embeddings,
    )


def table(spec: GPT2Spec) -> Table:
    """Names in Hugging Face files; matrices are [in, out]."""
    head = Rule(
        "lm_head.weight", (spec.vocab, spec.embed), {"unembedding.weight": same}
    )
    top = (
        Rule("wte.weight", (spec.vocab, spec.embed), {"embedding.weight": same}),
        Rule("wpe.weight", (spec.context, spec.embed), {"positions.weight": same}),
        *norm("ln_f", "norm", spec),
        *(() if spec.tied else (head,)),
    )
    names = {
        "norm_1": "h.{layer}.ln_1",
        "norm_2": "h.{layer}.ln_2",
        "qkv": "h.{layer}.attn.c_attn",
        "o": "h.{layer}.attn.c_proj",
        "in": "h.{layer}.mlp.c_fc",
        "out": "h.{layer}.mlp.c_proj",
    }
    return Table(
        rules=(*top, *block_rules(spec, names, transposed=False)),
        ignored=(r".*\.attn\.(bias|masked_bias)",),
        same={"lm_head.weight": "wte.weight"} if spec.tied else {},
        prefix="transformer.",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPT2Fields:
    """Keys of GGUF metadata."""

    layers: Annotated[Size, Key("gpt2.block_count")]
    embed: Annotated[Size, Key("gpt2.embedding_length")]
    heads: Annotated[Size, Key("gpt2.attention.head_count")]
    mlp: Annotated[Size, Key("gpt2.feed_forward_length")]
    context: Annotated[Size, Key("gpt2.context_length")]
    eps: Annotated[NonNegative, Key("gpt2.attention.layer_norm_epsilon")]
    vocab: Annotated[Size | None, Key("gpt2.vocab_size")] = None


def from_gguf(gguf: Gguf) -> GPT2Spec:
    """Reads GGUF metadata."""
    found = gguf.record(GPT2Fields, "gpt2.")
    return GPT2Spec(
        layers=found.layers,
        embed=found.embed,
        heads=found.heads,
        mlp=found.mlp,
        vocab=found.vocab or gguf.shapes.get("token_embd.weight", (0,))[0],
        context=found.context,
        eps=short(found.eps),
        tied="output.weight" not in gguf.shapes,
    )


def gguf_table(spec: GPT2Spec) -> Table:
    """Names in GGUF files; matrices are [out, in]."""
    head = Rule("output.weight", (spec.vocab, spec.embed), {"unembedding.weight": same})
    positions = (spec.context, spec.embed)
    top = (
        Rule("token_embd.weight", (spec.vocab, spec.embed), {"embedding.weight": same}),
        Rule("position_embd.weight", positions, {"positions.weight": same}),
        *norm("output_norm", "norm", spec),
        *(() if spec.tied else (head,)),
    )
    names = {
        "norm_1": "blk.{layer}.attn_norm",
        "norm_2": "blk.{layer}.ffn_norm",
        "qkv": "blk.{layer}.attn_qkv",
        "o": "blk.{layer}.attn_output",
        "in": "blk.{layer}.ffn_up",
        "out": "blk.{layer}.ffn_down",
    }
    return Table(rules=(*top, *block_rules(spec, names, transposed=True)))


def block_rules(
    spec: GPT2Spec, names: Mapping[str, str], *, transposed: bool
) -> tuple[Rule, ...]:
    """Rules of a block, for either kind of file."""
    embed, heads, mlp = spec.embed, spec.heads, spec.mlp

    def matrix(name: str, rows: int, columns: int, **into: Any) -> Rule:
        shape = (columns, rows) if transposed else (rows, columns)
        turn = {leaf: turned(make, transposed) for leaf, make in into.items()}
        return Rule(f"{names[name]}.weight", shape, turned_names(turn))

    def bias(name: str, size: int, **into: Any) -> Rule:
        return Rule(f"{names[name]}.bias", (size,), turned_names(into))

    part = lambda i, *shape: lambda x: np.split(x, 3, -1)[i].reshape(shape)  # noqa: E731
    q = (embed, heads, embed // heads)
    return (
        *norm(names["norm_1"], "blocks.norm_1", spec),
        *norm(names["norm_2"], "blocks.norm_2", spec),
        matrix(
            "qkv",
            *(embed, 3 * embed),
            attention__w_q=part(0, *q),
            attention__w_k=part(1, *q),
            attention__w_v=part(2, *q),
        ),
        bias(
            "qkv",
            3 * embed,
            attention__b_q=part(0, *q[1:]),
            attention__b_k=part(1, *q[1:]),
            attention__b_v=part(2, *q[1:]),
        ),
        matrix("o", embed, embed, attention__w_o=lambda x: x.reshape(*q[1:], embed)),
        bias("o", embed, attention__b_o=same),
        matrix("in", embed, mlp, mlp__w_in=same),
        bias("in", mlp, mlp__b_in=same),
        matrix("out", mlp, embed, mlp__w_out=same),
        bias("out", embed, mlp__b_out=same),
    )


def turned(make: Callable[[np.ndarray], np.ndarray], transposed: bool) -> Any:
    """Applies a transform to a matrix that the file may hold transposed."""
    return (lambda x: make(x.T)) if transposed else make


def turned_names(into: Mapping[str, Any]) -> dict[str, Any]:
    """Writes keyword names as paths of block leaves."""
    return {f"blocks.{leaf.replace('__', '.')}": make for leaf, make in into.items()}


def norm(name: str, leaf: str, spec: GPT2Spec) -> tuple[Rule, Rule]:
    """Rules of a LayerNorm."""
    return (
        Rule(f"{name}.weight", (spec.embed,), {f"{leaf}.weight": same}),
        Rule(f"{name}.bias", (spec.embed,), {f"{leaf}.bias": same}),
    )


PRESETS = {
    "gpt2": Preset(GPT2Spec(), "openai-community/gpt2"),
    "gpt2-medium": Preset(
        GPT2Spec(layers=24, embed=1024, heads=16, mlp=4096),
        "openai-community/gpt2-medium",
    ),
    "gpt2-large": Preset(
        GPT2Spec(layers=36, embed=1280, heads=20, mlp=5120),
        "openai-community/gpt2-large",
    ),
    "gpt2-xl": Preset(
        GPT2Spec(layers=48, embed=1600, heads=25, mlp=6400),
        "openai-community/gpt2-xl",
    ),
}
GPT2 = Family(
    name="gpt2",
    turned=True,
    spec=GPT2Spec,
    init=init,
    presets=PRESETS,
    from_config=from_config,
    table=table,
    gguf_name="gpt2",
    from_gguf=from_gguf,
    gguf_table=gguf_table,
)
