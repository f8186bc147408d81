"""Parts of encoders: BERT and its relatives.

A family gives the names of its parts; sizes, blocks and heads are built here.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax._errors import LoadError
from mijax.io import Index, NonNegative, Only, Size, Tensors
from mijax.models._config import ACTIVATIONS, Activation, HubConfig
from mijax.models._decoder import attention, biases, plain_mlp
from mijax.models._family import Rule, Table, same
from mijax.models._init import Normal, layer_norm
from mijax.models._leaves import plain_names, rules
from mijax.nn import (
    Embedding,
    Encoder,
    EncoderHead,
    Identity,
    PostNormBlock,
    ReLU,
    Tanh,
    Unembedding,
)

# Kind of head: logits of masked tokens, logits of classes, or none.
MASKED, CLASSES, FEATURES = "masked", "classes", "features"
KINDS = {
    "ForMaskedLM": MASKED,
    "ForPreTraining": MASKED,
    "ForSequenceClassification": CLASSES,
    "Model": FEATURES,
}


@dataclasses.dataclass(frozen=True)
class EncoderSpec:
    """Sizes that encoders share.

    Attributes:
        layers: number of blocks.
        embed: width of the residual stream.
        heads: attention heads of a block.
        mlp: neurons of a block.
        vocab: number of tokens.
        context: most tokens of a prompt.
        segments: number of segments, 0 for a model without them.
        eps: epsilon of the norms.
        activation: activation of the MLPs and of a head of masked tokens.
        head: `masked` for logits of masked tokens, `classes` for those of classes,
            `features` for a model without a head.
        classes: number of classes.
    """

    layers: Size
    embed: Size
    heads: Size
    mlp: Size
    vocab: Size
    context: Size = 512
    segments: Index = 2
    eps: NonNegative = 1e-12
    activation: Activation = "gelu"
    head: Annotated[str, Only(MASKED, CLASSES, FEATURES)] = MASKED
    classes: Size = 2

    # Logits of tokens read the token embedding in every supported model.
    tied: ClassVar[bool] = True


def encoder(
    spec: Any,
    key: PRNGKeyArray,
    dtype: DTypeLike,
    *,
    size: int | None = None,
    pool: Tanh | ReLU | None = None,
) -> Encoder:
    """Draw an encoder.

    Args:
        spec: the sizes.
        key: seed of the weights, of standard deviation 0.02.
        dtype: precision of the weights.
        size: size of the embeddings; `embed` if it is not given.
        pool: activation of a head of classes; the hyperbolic tangent by default.

    Returns:
        The model.
    """
    normal, width = Normal(key, dtype), size or spec.embed
    norms = [
        layer_norm(spec.embed, dtype, spec.eps, layers=spec.layers) for _ in range(2)
    ]
    fields = biases(spec, dtype, out=True) | {"causal": False}
    heads = attention(normal, spec, {}, **fields)
    blocks = PostNormBlock(norms[0], heads, norms[1], plain_mlp(normal, spec, dtype))
    types = Embedding(normal(spec.segments, width)) if spec.segments else None
    ids = jnp.zeros(spec.context, jnp.int32) if spec.segments else None
    project = None if size is None else linear(normal, width, spec.embed, dtype)
    return Encoder(
        embedding=Embedding(normal(spec.vocab, width)),
        positions=Embedding(normal(spec.context, width)),
        segments=types,
        segment_ids=ids,
        embedding_norm=layer_norm(width, dtype, spec.eps),
        project=project,
        blocks=blocks,
        head=head(normal, spec, dtype, width, pool or Tanh()),
        context=spec.context,
    )


def linear(normal: Normal, reads: int, writes: int, dtype: DTypeLike) -> Unembedding:
    """Draw a linear map with a bias."""
    return Unembedding(normal(writes, reads), jnp.zeros(writes, dtype))


def head(
    normal: Normal, spec: Any, dtype: DTypeLike, width: int, pool: Tanh | ReLU
) -> EncoderHead | None:
    """Draw the head of a spec, if it has one."""
    if spec.head == FEATURES:
        return None
    if spec.head == MASKED:
        return EncoderHead(
            dense=linear(normal, spec.embed, width, dtype),
            activation=ACTIVATIONS[spec.activation],
            norm=layer_norm(width, dtype, spec.eps),
            weight=None,
            bias=jnp.zeros(spec.vocab, dtype),
        )
    return EncoderHead(
        dense=linear(normal, spec.embed, spec.embed, dtype),
        activation=pool,
        norm=Identity(),
        weight=normal(spec.classes, spec.embed),
        bias=jnp.zeros(spec.classes, dtype),
    )


def computed(spec: Any) -> dict[str, np.ndarray]:
    """Return the segment of every position, 0."""
    if not spec.segments:
        return {}
    return {"segment_ids": np.zeros(spec.context, np.int32)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadConfig(HubConfig):
    """Keys of config.json that choose the head of any encoder."""

    architectures: list[str] | None = None
    id2label: dict[str, Any] | None = None
    num_labels: Size | None = None
    problem_type: str | None = None
    is_decoder: Annotated[bool, Only(False)] = False
    tie_word_embeddings: Annotated[bool, Only(True)] = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig(HeadConfig):
    """Keys of config.json that BERT, RoBERTa and ALBERT share."""

    ignored: ClassVar[frozenset[str]] = frozenset(
        [
            "attention_probs_dropout_prob",
            "classifier_dropout",
            "classifier_dropout_prob",
            "directionality",
            "eos_token_ids",
            "hidden_dropout_prob",
            "output_past",
            "pooler_fc_size",
            "pooler_num_attention_heads",
            "pooler_num_fc_layers",
            "pooler_size_per_head",
            "pooler_type",
        ]
    )

    num_hidden_layers: Size
    hidden_size: Size
    num_attention_heads: Size
    intermediate_size: Size
    vocab_size: Size
    max_position_embeddings: Size = 512
    type_vocab_size: Size = 2
    layer_norm_eps: NonNegative = 1e-12
    hidden_act: Activation = "gelu"
    position_embedding_type: Annotated[str, Only("absolute")] = "absolute"


def sizes(found: Any, path: str) -> dict[str, Any]:
    """Return the values of the fields of an `EncoderSpec`."""
    return {
        "layers": found.num_hidden_layers,
        "embed": found.hidden_size,
        "heads": found.num_attention_heads,
        "mlp": found.intermediate_size,
        "vocab": found.vocab_size,
        "context": found.max_position_embeddings,
        "segments": found.type_vocab_size,
        "eps": found.layer_norm_eps,
        "activation": found.hidden_act,
        **head_fields(found, path),
    }


def head_fields(found: HeadConfig, path: str) -> dict[str, Any]:
    """Return kind of head and number of classes.

    Raises:
        LoadError: an architecture that is not supported.
    """
    named = found.architectures or [""]
    kinds = {kind for end, kind in KINDS.items() if named[0].endswith(end)}
    if len(named) > 1 or len(kinds) != 1:
        ends = ", ".join(f"'...{end}'" for end in KINDS)
        raise LoadError(
            f"{path}: 'architectures' is {found.architectures}, expected one name, "
            f"{ends}."
        )
    labels = found.num_labels or (len(found.id2label) if found.id2label else 2)
    return {"head": kinds.pop(), "classes": labels}


@dataclasses.dataclass(frozen=True)
class HeadNames:
    """Names of the parts of a head in files.

    Attributes:
        dense: the linear map.
        out: the map to the outputs.
        norm: the norm, of masked tokens only.
        bias: the bias of logits of tokens, if it is not `out.bias`.
    """

    dense: str
    out: str
    norm: str = ""
    bias: str | None = None


@dataclasses.dataclass(frozen=True)
class EncoderNames:
    """Names of an encoder in files, without the name of the body.

    Attributes:
        body: what names of the body begin with where the model has a head.
        layer: what names of a block begin with.
        parts: name of each part of a block.
        masked: the head of masked tokens.
        classes: the head of classes.
        project: the map from embeddings to the stream.
    """

    body: str
    layer: str
    parts: Mapping[str, str]
    masked: HeadNames
    classes: HeadNames
    project: str | None = None


WORDS = "embeddings.word_embeddings.weight"


def encoder_table(
    spec: Any,
    names: EncoderNames,
    *,
    size: int | None = None,
    before: int = 0,
    unused: Sequence[str] = (),
) -> Table:
    """Return the table of Hugging Face names of an encoder.

    Args:
        spec: the sizes.
        names: the names.
        size: size of the embeddings; `embed` if it is not given.
        before: rows of the table of positions before that of the first token.
        unused: patterns of names of heads of pre-training that are left out.
    """
    width = size or spec.embed
    found = embeddings(spec, width, before)
    if names.project is not None:
        found += pair(names.project, "project", (spec.embed, width))
    found += rules(spec, plain_names({}, names.layer, names.parts))
    twins: dict[str, str] = {}
    if spec.head == MASKED:
        one = names.masked
        bias = one.bias or f"{one.out}.bias"
        found += pair(one.dense, "head.dense", (width, spec.embed))
        found += pair(one.norm, "head.norm", (width,))
        found.append(Rule(bias, (spec.vocab,), {"head.bias": same}))
        twins[f"{one.out}.weight"] = WORDS
        if one.bias is not None:
            twins[f"{one.out}.bias"] = bias
    if spec.head == CLASSES:
        one = names.classes
        found += pair(one.dense, "head.dense", (spec.embed, spec.embed))
        found += pair(one.out, "head", (spec.classes, spec.embed))
    ignored = ("embeddings.position_ids", *unused)
    return Table(
        rules=tuple(found),
        ignored=tuple(f"({names.body})?{pattern}" for pattern in ignored),
        same=twins,
        prefix=names.body,
    )


def embeddings(spec: Any, width: int, before: int) -> list[Rule]:
    """Return the rules of the embeddings and their norm."""

    def later(x: np.ndarray) -> np.ndarray:
        return x[before:]

    tables = (
        ("embedding", WORDS, spec.vocab, same),
        (
            "positions",
            "embeddings.position_embeddings.weight",
            before + spec.context,
            later,
        ),
        ("segments", "embeddings.token_type_embeddings.weight", spec.segments, same),
    )
    found = [
        Rule(name, (rows, width), {f"{leaf}.weight": make})
        for leaf, name, rows, make in tables
        if rows
    ]
    return found + pair("embeddings.LayerNorm", "embedding_norm", (width,))


def pair(name: str, leaf: str, shape: tuple[int, ...]) -> list[Rule]:
    """Return the rules of a weight and of its bias, with one entry for each row."""
    return [
        Rule(f"{name}.weight", shape, {f"{leaf}.weight": same}),
        Rule(f"{name}.bias", shape[:1], {f"{leaf}.bias": same}),
    ]


class PlainNorms:
    """Tensors of a file with the names of norms that TensorFlow gave them replaced.

    Args:
        source: the file.
    """

    def __init__(self, source: Tensors) -> None:
        self.source, self.path, self.files = source, source.path, source.files
        self.real = {plain_norm(name): name for name in source.shapes}
        self.shapes: Mapping[str, tuple[int, ...]] = {
            ours: source.shapes[name] for ours, name in self.real.items()
        }

    def read(self, name: str) -> np.ndarray:
        """Read one tensor."""
        return self.source.read(self.real[name])


def plain_norm(name: str) -> str:
    """Return the name of a norm's weight or bias as newer files have it."""
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        if name.endswith(f"LayerNorm{old}"):
            return name.removesuffix(old) + new
    return name
