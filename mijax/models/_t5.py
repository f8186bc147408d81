"""T5 (Raffel et al. 2020, arXiv:1910.10683), T5 1.1 and Flan-T5: encoder-decoders.

Scores are not scaled, and have a bias that depends on the distance between two tokens
and is shared by all layers in a tower. The original version has ReLU MLPs and ties the
unembedding to the embedding, with a factor of `embed ** -0.5`; later versions have
gated MLPs and a separate unembedding. Here the factor is part of the decoder's final
norm.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax._errors import LoadError
from mijax.io import Index, NonNegative, Only, Size, Tensors
from mijax.models._config import ACTIVATIONS, Activation, HubConfig, read_hub_config
from mijax.models._decoder import attention, gated_mlp
from mijax.models._family import Family, Preset, Rule, Table, same
from mijax.models._init import Normal, rms_norm
from mijax.models._leaves import of_tower, rules
from mijax.nn import (
    MLP,
    Block,
    CrossAttention,
    CrossBlock,
    Embedding,
    RelativePositions,
    Stack,
    TextToText,
    Transformer,
    Unembedding,
)

RELATIVE = "attention.bias.weight"
GATED = "gated-"


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Spec:
    """Sizes of a T5.

    Attributes:
        layers: number of blocks of the decoder.
        encoder_layers: number of blocks of the encoder; `layers` by default.
        embed: width of both residual streams.
        heads: attention heads of a block.
        head_dim: size of a head.
        mlp: neurons of a block.
        vocab: number of tokens.
        buckets: number of biases by distance.
        max_distance: distance from which all tokens share a bias.
        eps: epsilon of the norms.
        activation: activation of the MLPs.
        gated: True if MLPs are gated.
        tied: True if the unembedding is the embedding, with a factor.
        start: token that every target begins with.
    """

    layers: Size
    encoder_layers: Size | None = None
    embed: Size
    heads: Size
    head_dim: Size
    mlp: Size
    vocab: Size
    buckets: Size = 32
    max_distance: Size = 128
    eps: NonNegative = 1e-6
    activation: Activation = "relu"
    gated: bool = False
    tied: bool = True
    start: Index = 0

    # Rules of decoders ask for it; there are no learned positions.
    context: ClassVar[int] = 0

    @property
    def encoder(self) -> "T5Spec":
        """Sizes of the encoder."""
        return dataclasses.replace(self, layers=self.encoder_layers or self.layers)


def init(spec: T5Spec, key: PRNGKeyArray, dtype: DTypeLike) -> TextToText:
    """Draws weights of standard deviation 0.02."""
    normal = Normal(key, dtype)
    norm_1, norm_2, norm_3 = norms(spec, dtype, 3)
    blocks = CrossBlock(
        norm_1,
        heads(normal, spec, causal=True),
        norm_2,
        cross(normal, spec),
        norm_3,
        mlp(normal, spec),
    )
    decoder = Transformer(
        embedding=Embedding(normal(spec.vocab, spec.embed)),
        positions=None,
        blocks=blocks,
        norm=rms_norm(spec.embed, dtype, spec.eps),
        unembedding=None if spec.tied else Unembedding(normal(spec.vocab, spec.embed)),
    )
    return TextToText(encoder(normal, spec.encoder, dtype), decoder, (spec.start,))


def encoder(normal: Normal, spec: T5Spec, dtype: DTypeLike) -> Stack:
    """Draw the encoder."""
    norm_1, norm_2 = norms(spec, dtype, 2)
    attention = heads(normal, spec, causal=False)
    blocks = Block(norm_1, attention, norm_2, mlp(normal, spec))
    return Stack(blocks, rms_norm(spec.embed, dtype, spec.eps))


def norms(spec: T5Spec, dtype: DTypeLike, count: int) -> list[Any]:
    """Return the norms of a block."""
    size, eps = spec.embed, spec.eps
    return [rms_norm(size, dtype, eps, layers=spec.layers) for _ in range(count)]


def heads(normal: Normal, spec: T5Spec, *, causal: bool) -> Any:
    """Draw the attention of a tower."""
    table = normal(spec.layers, spec.buckets, spec.heads)
    bias = RelativePositions(table, spec.max_distance, causal)
    plain = attention(normal, spec, {}, causal=causal, scale=1.0)
    return dataclasses.replace(plain, bias=bias)


def cross(normal: Normal, spec: T5Spec) -> CrossAttention:
    """Draw the cross-attention."""
    n, embed, heads, head_dim = spec.layers, spec.embed, spec.heads, spec.head_dim
    w_q, w_k, w_v = (normal(n, embed, heads, head_dim) for _ in range(3))
    return CrossAttention(w_q, w_k, w_v, normal(n, heads, head_dim, embed), scale=1.0)


def mlp(normal: Normal, spec: T5Spec) -> Any:
    """Draw the MLP of a tower."""
    if spec.gated:
        return gated_mlp(normal, spec)
    return MLP(
        w_in=normal(spec.layers, spec.embed, spec.mlp),
        w_out=normal(spec.layers, spec.mlp, spec.embed),
        b_in=None,
        b_out=None,
        activation=ACTIVATIONS[spec.activation],
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config(HubConfig):
    """Keys of config.json, of transformers 4 or 5."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        [
            "classifier_dropout",
            "dropout_rate",
            "initializer_factor",
            "n_positions",
            "output_past",
        ]
    )

    num_layers: Size
    num_decoder_layers: Size | None = None
    d_model: Size
    d_kv: Size
    d_ff: Size
    num_heads: Size
    vocab_size: Size
    relative_attention_num_buckets: Size = 32
    relative_attention_max_distance: Size = 128
    layer_norm_epsilon: NonNegative = 1e-6
    feed_forward_proj: str = "relu"
    dense_act_fn: str | None = None
    is_gated_act: bool | None = None
    decoder_start_token_id: Index | None = None
    is_decoder: Annotated[bool, Only(False)] = False
    is_encoder_decoder: Annotated[bool, Only(True)] = True
    tie_word_embeddings: bool = True
    scale_decoder_outputs: bool | None = None


def from_config(config: Mapping[str, Any], path: str) -> T5Spec:
    """Reads a Hugging Face config."""
    found = read_hub_config(T5Config, config, path)
    activation, gated = read_mlp(found, path)
    # Newer configs set tied embeddings even if files contain two tables.
    scaled = found.scale_decoder_outputs
    return T5Spec(
        layers=found.num_decoder_layers or found.num_layers,
        encoder_layers=found.num_layers,
        embed=found.d_model,
        heads=found.num_heads,
        head_dim=found.d_kv,
        mlp=found.d_ff,
        vocab=found.vocab_size,
        buckets=found.relative_attention_num_buckets,
        max_distance=found.relative_attention_max_distance,
        eps=found.layer_norm_epsilon,
        activation=activation,
        gated=gated,
        tied=found.tie_word_embeddings if scaled is None else scaled,
        start=found.decoder_start_token_id or 0,
    )


def read_mlp(found: T5Config, path: str) -> tuple[str, bool]:
    """Return the activation, and True if the MLP is gated.

    Raises:
        LoadError: an activation that is not supported, or keys that disagree.
    """
    kind = found.feed_forward_proj
    gated, activation = kind.startswith(GATED), kind.removeprefix(GATED)
    # T5 1.1 files refer to the tanh approximation.
    activation = "gelu_new" if kind == "gated-gelu" else activation
    if activation not in ACTIVATIONS:
        names = ", ".join(ACTIVATIONS)
        raise LoadError(
            f"{path}: 'feed_forward_proj' is '{kind}', expected an activation or "
            f"'{GATED}' and an activation, one of {names}."
        )
    given = (found.dense_act_fn, found.is_gated_act)
    if any(a not in (None, b) for a, b in zip(given, (activation, gated), strict=True)):
        raise LoadError(
            f"{path}: 'feed_forward_proj' is '{kind}', but 'dense_act_fn' is "
            f"'{given[0]}' and 'is_gated_act' is {given[1]}: give keys that agree."
        )
    return activation, gated


SHARED, HEAD = "shared.weight", "lm_head.weight"
COPIES: tuple[str, ...] = (
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
)
PROJECTIONS = ("q", "k", "v", "o")


def table(spec: T5Spec) -> Table:
    """Names in Hugging Face files."""
    factor = spec.embed**-0.5 if spec.tied else 1.0
    gain = {"decoder.norm.weight": lambda x: factor * x}
    found = [
        Rule("decoder.final_layer_norm.weight", (spec.embed,), gain),
        Rule(SHARED, (spec.vocab, spec.embed), {"decoder.embedding.weight": same}),
        *tower_rules(spec.encoder, "encoder", 1),
        *tower_rules(spec, "decoder", 2),
        *cross_rules(spec),
    ]
    norm = {"encoder.norm.weight": same}
    found.append(Rule("encoder.final_layer_norm.weight", (spec.embed,), norm))
    copies: dict[str, str] = dict.fromkeys(COPIES, SHARED)
    if spec.tied:
        copies[HEAD] = SHARED
    else:
        leaf = {"decoder.unembedding.weight": same}
        found.append(Rule(HEAD, (spec.vocab, spec.embed), leaf))
    unused = (
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias.*",
    )
    return Table(rules=tuple(found), ignored=unused, same=copies)


def tower_rules(spec: T5Spec, tower: str, last: int) -> list[Rule]:
    """Return the rules of attention and MLP of a tower.

    Args:
        spec: sizes of the tower.
        tower: its name.
        last: number of the part of a block that is its MLP.
    """
    layer = f"{tower}.block.{{layer}}.layer."
    names = {"blocks.norm_1.weight": f"{layer}0.layer_norm.weight"}
    for x in PROJECTIONS:
        names[f"blocks.attention.w_{x}"] = f"{layer}0.SelfAttention.{x}.weight"
    names[f"blocks.norm_{last + 1}.weight"] = f"{layer}{last}.layer_norm.weight"
    parts = {"w_gate": "wi_0", "w_in": "wi_1"} if spec.gated else {"w_in": "wi"}
    for part, name in (parts | {"w_out": "wo"}).items():
        names[f"blocks.mlp.{part}"] = f"{layer}{last}.DenseReluDense.{name}.weight"
    found = [of_tower(r, tower, spec.layers) for r in rules(spec, names)]
    first = f"{tower}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    leaf = {f"{tower}.blocks.{RELATIVE}": same}
    return [*found, Rule(first, (spec.buckets, spec.heads), leaf)]


def cross_rules(spec: T5Spec) -> list[Rule]:
    """Return the rules of the cross-attention."""
    layer = "decoder.block.{layer}.layer.1."
    names = {"blocks.norm_2.weight": f"{layer}layer_norm.weight"}
    for x in PROJECTIONS:
        names[f"blocks.attention.w_{x}"] = f"{layer}EncDecAttention.{x}.weight"
    return [
        of_tower(r, "decoder", spec.layers, {"blocks.attention.": "blocks.cross."})
        for r in rules(spec, names)
    ]


class WithHead:
    """Tensors of a file, with the embedding as the unembedding where it has none.

    Args:
        source: the file.
    """

    def __init__(self, source: Tensors) -> None:
        self.source, self.path, self.files = source, source.path, source.files
        self.twins = {}
        if SHARED in source.shapes and HEAD not in source.shapes:
            self.twins[HEAD] = SHARED
        shapes = {new: source.shapes[old] for new, old in self.twins.items()}
        self.shapes: Mapping[str, tuple[int, ...]] = {**source.shapes, **shapes}

    def read(self, name: str) -> np.ndarray:
        """Read one tensor."""
        return self.source.read(self.twins.get(name, name))


def t5(layers: int, embed: int, heads: int, mlp: int, **more: Any) -> T5Spec:
    """Return the sizes of a published T5."""
    sizes = {"layers": layers, "encoder_layers": layers, "embed": embed}
    sizes |= {"heads": heads, "head_dim": 64, "mlp": mlp, "vocab": 32128}
    return T5Spec(**sizes, **more)


FLAN = {"activation": "gelu_new", "gated": True, "tied": False}
PRESETS = {
    "t5-small": Preset(t5(6, 512, 8, 2048), "google-t5/t5-small"),
    "t5-base": Preset(t5(12, 768, 12, 3072), "google-t5/t5-base"),
    "t5-large": Preset(t5(24, 1024, 16, 4096), "google-t5/t5-large"),
    "flan-t5-small": Preset(t5(8, 512, 6, 1024, **FLAN), "google/flan-t5-small"),
    "flan-t5-base": Preset(t5(12, 768, 12, 2048, **FLAN), "google/flan-t5-base"),
    "flan-t5-large": Preset(t5(24, 1024, 16, 2816, **FLAN), "google/flan-t5-large"),
}
T5 = Family(
    name="t5",
    spec=T5Spec,
    init=init,
    presets=PRESETS,
    from_config=from_config,
    table=table,
    renamed=WithHead,
)
