"""ModernBERT (Warner et al. 2024, arXiv:2412.13663): an encoder with local attention.

Norms before attention and MLP, without biases; the first block's attention has none.
Every third layer reads all tokens, the others those nearby. The two kinds of layers
have different rotations. Gated MLPs.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax._errors import LoadError
from mijax.io import Index, Indices, NonNegative, Only, Positive, Size
from mijax.models._config import ACTIVATIONS, Activation, read_hub_config
from mijax.models._decoder import FREQUENCY, attention, gated_mlp, window_leaf
from mijax.models._decoder_config import windows
from mijax.models._encoder import (
    CLASSES,
    FEATURES,
    MASKED,
    EncoderSpec,
    HeadConfig,
    head_fields,
)
from mijax.models._family import Family, Preset, Rule, Table, same
from mijax.models._gpt_neox import fused
from mijax.models._init import Normal
from mijax.models._leaves import rules
from mijax.models._rope import Rope, by_layer_type, frequencies, read_rope
from mijax.nn import (
    Block,
    Embedding,
    Encoder,
    EncoderHead,
    LayerNorm,
    OptionalNorm,
    Unembedding,
)

APPLIED = "blocks.norm_1.applied"


@dataclasses.dataclass(frozen=True)
class ModernBertSpec(EncoderSpec):
    """Sizes of a ModernBERT.

    Attributes:
        windows: of each layer, its own token and the tokens that it reads on each
            side; 0 for all. Without windows every layer reads all tokens.
        rope_theta: base of the rotation in layers that read all tokens.
        rope_local: base of the rotation in layers with a window.
    """

    context: Size = 8192
    segments: Index = 0
    eps: NonNegative = 1e-5
    windows: Indices = ()
    rope_theta: Positive = 160000.0
    rope_local: Positive = 10000.0


def init(spec: ModernBertSpec, key: PRNGKeyArray, dtype: DTypeLike) -> Encoder:
    """Draws weights of standard deviation 0.02."""
    normal, n, leaves = Normal(key, dtype), spec.layers, computed(spec)

    def norm(*layers: int) -> LayerNorm:
        return LayerNorm(jnp.ones((*layers, spec.embed), dtype), None, spec.eps)

    first = OptionalNorm(norm(n), jnp.asarray(leaves.pop(APPLIED)))
    heads = attention(normal, spec, leaves, causal=False)
    return Encoder(
        embedding=Embedding(normal(spec.vocab, spec.embed)),
        positions=None,
        segments=None,
        segment_ids=None,
        embedding_norm=norm(),
        project=None,
        blocks=Block(first, heads, norm(n), gated_mlp(normal, spec)),
        head=head(normal, spec, norm()),
        context=spec.context,
        norm=norm(),
    )


def head(normal: Normal, spec: ModernBertSpec, norm: LayerNorm) -> EncoderHead | None:
    """Draw the head of a spec, if it has one."""
    if spec.head == FEATURES:
        return None
    count = spec.vocab if spec.head == MASKED else spec.classes
    return EncoderHead(
        dense=Unembedding(normal(spec.embed, spec.embed)),
        activation=ACTIVATIONS[spec.activation],
        norm=norm,
        weight=None if spec.head == MASKED else normal(count, spec.embed),
        bias=jnp.zeros(count, normal.dtype),
    )


def computed(spec: ModernBertSpec) -> dict[str, np.ndarray]:
    """Rotary frequencies and windows of every layer, and which have a first norm."""
    head_dim = spec.embed // spec.heads
    full = frequencies(spec.rope_theta, head_dim)
    local = frequencies(spec.rope_local, head_dim)
    each = [local if window else full for window in spec.windows]
    stacked = np.stack(each or [full] * spec.layers).astype(np.float32)
    applied = (np.arange(spec.layers) > 0).astype(np.int32)
    return {FREQUENCY: stacked, APPLIED: applied} | window_leaf(spec.windows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModernBertConfig(HeadConfig):
    """Keys of config.json, of transformers 4 or 5."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        [
            "attention_dropout",
            "classifier_dropout",
            "cls_token_id",
            "deterministic_flash_attn",
            "embedding_dropout",
            "initializer_cutoff_factor",
            "layer_norm_eps",
            "mlp_dropout",
            "position_embedding_type",
            "reference_compile",
            "repad_logits_with_grad",
            "sparse_pred_ignore_index",
            "sparse_prediction",
        ]
    )

    num_hidden_layers: Size
    hidden_size: Size
    num_attention_heads: Size
    intermediate_size: Size
    vocab_size: Size
    max_position_embeddings: Size = 8192
    norm_eps: NonNegative = 1e-5
    hidden_activation: Activation = "gelu"
    classifier_activation: Activation = "gelu"
    classifier_pooling: Annotated[str, Only("cls", "mean")] = "cls"
    local_attention: Size = 128
    global_attn_every_n_layers: Size = 3
    layer_types: list[str] | None = None
    global_rope_theta: Positive | None = None
    local_rope_theta: Positive | None = None
    rope_parameters: dict[str, Any] | None = None
    attention_bias: Annotated[bool, Only(False)] = False
    classifier_bias: Annotated[bool, Only(False)] = False
    decoder_bias: Annotated[bool, Only(True)] = True
    mlp_bias: Annotated[bool, Only(False)] = False
    norm_bias: Annotated[bool, Only(False)] = False


def from_config(config: Mapping[str, Any], path: str) -> ModernBertSpec:
    """Reads a Hugging Face config."""
    found = read_hub_config(ModernBertConfig, config, path)
    fields = head_fields(found, path)
    check_head(found, fields["head"], path)
    every, count = found.global_attn_every_n_layers, found.num_hidden_layers
    local = [layer % every > 0 for layer in range(count)]
    rope = Rope(found.global_rope_theta, None, found.rope_parameters)
    full, near = by_layer_type(rope, path, local=found.local_rope_theta)
    return ModernBertSpec(
        layers=count,
        embed=found.hidden_size,
        heads=found.num_attention_heads,
        mlp=found.intermediate_size,
        vocab=found.vocab_size,
        context=found.max_position_embeddings,
        eps=found.norm_eps,
        activation=found.hidden_activation,
        windows=windows(found.layer_types, found.local_attention // 2 + 1, local, path),
        **read_rope(full, path, {}, theta=160000.0),
        rope_local=read_rope(near, path, {})["rope_theta"],
        **fields,
    )


def check_head(found: ModernBertConfig, kind: str, path: str) -> None:
    """Refuse heads of another activation, or of the mean of all tokens.

    Raises:
        LoadError: such a head.
    """
    if found.classifier_activation != found.hidden_activation:
        raise LoadError(
            f"{path}: 'classifier_activation' is {found.classifier_activation!r}, only "
            f"{found.hidden_activation!r}, that of the blocks, is supported."
        )
    if kind == CLASSES and found.classifier_pooling != "cls":
        raise LoadError(
            f"{path}: 'classifier_pooling' is {found.classifier_pooling!r}, only "
            "'cls', the class token, is supported."
        )


LAYER = "layers.{layer}."
NAMES = {
    "embedding.weight": "embeddings.tok_embeddings.weight",
    "norm.weight": "final_norm.weight",
    "blocks.norm_2.weight": f"{LAYER}mlp_norm.weight",
    "blocks.attention.w_o": f"{LAYER}attn.Wo.weight",
    "blocks.mlp.w_out": f"{LAYER}mlp.Wo.weight",
}


def table(spec: ModernBertSpec) -> Table:
    """Names in Hugging Face files."""
    embed, mlp = spec.embed, spec.mlp
    parts = {
        "blocks.mlp.w_gate": lambda x: x[:mlp].T,
        "blocks.mlp.w_in": lambda x: x[mlp:].T,
    }
    found = [
        *rules(spec, NAMES),
        *fused(spec, f"{LAYER}attn.Wqkv", by_head=False, bias=False),
        vector("embeddings.norm", embed, "embedding_norm"),
        Rule(f"{LAYER}mlp.Wi.weight", (2 * mlp, embed), parts),
        vector(f"{LAYER}attn_norm", embed, "blocks.norm_1.norm", (1, spec.layers)),
    ]
    found = found if spec.layers > 1 else found[:-1]
    twins: dict[str, str] = {}
    if spec.head != FEATURES:
        square = {"head.dense.weight": same}
        found.append(Rule("head.dense.weight", (embed, embed), square))
        found.append(vector("head.norm", embed, "head.norm"))
    if spec.head == MASKED:
        found.append(Rule("decoder.bias", (spec.vocab,), {"head.bias": same}))
        twins["decoder.weight"] = NAMES["embedding.weight"]
    if spec.head == CLASSES:
        shape = (spec.classes, embed)
        found.append(Rule("classifier.weight", shape, {"head.weight": same}))
        found.append(Rule("classifier.bias", shape[:1], {"head.bias": same}))
    return Table(rules=tuple(found), same=twins, prefix="model.")


def vector(
    name: str, size: int, leaf: str, span: tuple[int, int] | None = None
) -> Rule:
    """Return the rule of a norm's weight."""
    return Rule(f"{name}.weight", (size,), {f"{leaf}.weight": same}, span=span)


def modernbert(layers: int, embed: int, heads: int, mlp: int) -> ModernBertSpec:
    """A ModernBERT."""
    return ModernBertSpec(
        layers=layers,
        embed=embed,
        heads=heads,
        mlp=mlp,
        vocab=50368,
        windows=tuple(65 if layer % 3 else 0 for layer in range(layers)),
    )


PRESETS = {
    "modernbert-base": Preset(
        modernbert(22, 768, 12, 1152), "answerdotai/ModernBERT-base"
    ),
    "modernbert-large": Preset(
        modernbert(28, 1024, 16, 2624), "answerdotai/ModernBERT-large"
    ),
}
MODERNBERT = Family(
    name="modernbert",
    spec=ModernBertSpec,
    init=init,
    presets=PRESETS,
    computed=computed,
    from_config=from_config,
    table=table,
)
