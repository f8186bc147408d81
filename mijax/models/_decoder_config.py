"""Keys that the configs of many decoders share, of Hugging Face and of GGUF files."""

import dataclasses
import functools
import typing
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from mijax._errors import LoadError
from mijax.io import Gguf, Index, Key, NonNegative, Positive, Size
from mijax.models._config import Activation, HubConfig, divide
from mijax.models._family import short
from mijax.models._rope import TYPES

K = TypeVar("K")
FULL, SLIDING = TYPES


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(HubConfig):
    """Keys of config.json that say the sizes, of transformers 4 or 5."""

    num_hidden_layers: Size
    hidden_size: Size
    num_attention_heads: Size
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    intermediate_size: Size
    vocab_size: Size
    max_position_embeddings: Size
    rms_norm_eps: NonNegative
    hidden_act: Activation = "silu"
    rope_theta: Positive | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    tie_word_embeddings: bool = False


def sizes(found: Any, path: str) -> dict[str, Any]:
    """Return the values of the fields of a `DecoderSpec`, all but the rotation."""
    embed, heads = found.hidden_size, found.num_attention_heads
    return {
        "layers": found.num_hidden_layers,
        "embed": embed,
        "heads": heads,
        "kv_heads": found.num_key_value_heads or heads,
        "head_dim": found.head_dim or divide(embed, heads, path),
        "mlp": found.intermediate_size,
        "vocab": found.vocab_size,
        "context": found.max_position_embeddings,
        "eps": found.rms_norm_eps,
        "activation": found.hidden_act,
        "tied": found.tie_word_embeddings,
    }


def windows(
    kinds: Sequence[str] | None,
    window: int | None,
    default: Sequence[bool],
    path: str,
) -> tuple[int, ...]:
    """Return the window of each layer, 0 where it reads all tokens.

    Args:
        kinds: `layer_types` of the config.
        window: `sliding_window` of the config.
        default: which layers have a window where the config gives no kinds.
        path: the file, named by errors.

    Returns:
        The windows; none if no layer has one.

    Raises:
        LoadError: unknown kinds, another number of kinds than layers, or windows
            without a size.
    """
    local = list(default)
    if kinds is not None:
        unknown = sorted(set(kinds) - {FULL, SLIDING})
        if unknown or len(kinds) != len(local):
            raise LoadError(
                f"{path}: 'layer_types' has {len(kinds)} entries for {len(local)} "
                f"layers{', among them ' + repr(unknown[0]) if unknown else ''}; "
                f"expected '{FULL}' or '{SLIDING}' for each layer."
            )
        local = [kind == SLIDING for kind in kinds]
    if not any(local):
        return ()
    if window is None:
        raise LoadError(
            f"{path}: layers of type '{SLIDING}' need 'sliding_window'. Add it."
        )
    return tuple(window if one else 0 for one in local)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderFields:
    """Keys of GGUF metadata that say the sizes, without the architecture's name."""

    layers: Annotated[Size, Key("block_count")]
    embed: Annotated[Size, Key("embedding_length")]
    heads: Annotated[Size, Key("attention.head_count")]
    kv_heads: Annotated[Size | None, Key("attention.head_count_kv")] = None
    key_length: Annotated[Size | None, Key("attention.key_length")] = None
    value_length: Annotated[Size | None, Key("attention.value_length")] = None
    rotated: Annotated[Size | None, Key("rope.dimension_count")] = None
    mlp: Annotated[Size, Key("feed_forward_length")]
    context: Annotated[Size, Key("context_length")]
    theta: Annotated[Positive, Key("rope.freq_base")] = 10000.0
    eps: Annotated[NonNegative, Key("attention.layer_norm_rms_epsilon")]
    vocab: Annotated[Size | None, Key("vocab_size")] = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowFields(DecoderFields):
    """Keys of architectures with windows."""

    window: Annotated[Index | None, Key("attention.sliding_window")] = None


def read_fields(gguf: Gguf, kind: type[K], architecture: str) -> K:
    """Read the metadata of an architecture.

    Args:
        gguf: the file.
        kind: a dataclass whose keys leave out the architecture's name.
        architecture: the name.

    Returns:
        The dataclass, filled.

    Raises:
        LoadError: an entry that is missing, unknown, of another type or out of range.
    """
    return gguf.record(prefixed(kind, architecture), f"{architecture}.")


@functools.cache
def prefixed(kind: Any, architecture: str) -> Any:
    """Return the dataclass with the architecture's name before every key."""
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = []
    for field in dataclasses.fields(kind):
        base, *marks = typing.get_args(hints[field.name])
        key = next(mark.name for mark in marks if isinstance(mark, Key))
        marks = [mark for mark in marks if not isinstance(mark, Key)]
        hint = Annotated[(base, *marks, Key(f"{architecture}.{key}"))]
        default = dataclasses.field(default=field.default)
        fields.append((field.name, hint, default))
    return dataclasses.make_dataclass(kind.__name__, fields, frozen=True, kw_only=True)


def gguf_sizes(
    gguf: Gguf, found: Any, architecture: str, *, partial: bool = False
) -> dict[str, Any]:
    """Return the values of the fields of a `DecoderSpec` but for its activation.

    Args:
        gguf: the file.
        found: its metadata.
        architecture: named by errors.
        partial: whether a part of the features of a head may be rotated.

    Returns:
        The values.

    Raises:
        LoadError: values of another size than keys, or a rotation of a part of them.
    """
    path = str(gguf.path)
    head_dim = found.key_length or divide(found.embed, found.heads, path)
    for name, size in (
        ("rope.dimension_count", head_dim if partial else found.rotated),
        ("attention.value_length", found.value_length),
    ):
        if (size or head_dim) != head_dim:
            raise LoadError(
                f"{path}: '{architecture}.{name}' is {size}, only {head_dim}, the size "
                "of a head, is supported."
            )
    return {
        "layers": found.layers,
        "embed": found.embed,
        "heads": found.heads,
        "kv_heads": found.kv_heads or found.heads,
        "head_dim": head_dim,
        "mlp": found.mlp,
        "vocab": found.vocab or gguf.shapes.get("token_embd.weight", (0,))[0],
        "context": found.context,
        "rope_theta": float(found.theta),
        "eps": short(found.eps),
        "tied": "output.weight" not in gguf.shapes,
    }
