"""Reading config.json: every key is declared, known to be without effect, or refused.

A family declares its keys as a `HubConfig`: those read into its spec and, with `Only`,
those that change the computation with the values that are supported.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from mijax._errors import LoadError
from mijax.io import Index, Only, read_record
from mijax.nn import GELU, QuickGELU, ReLU, SiLU

C = TypeVar("C", bound="HubConfig")

ACTIVATIONS = {
    "gelu_new": GELU(approximate=True),
    "gelu_pytorch_tanh": GELU(approximate=True),
    "gelu_fast": GELU(approximate=True),
    "gelu": GELU(approximate=False),
    "quick_gelu": QuickGELU(),
    "relu": ReLU(),
    "silu": SiLU(),
    "swish": SiLU(),
}
Activation = Annotated[str, Only(*ACTIVATIONS)]
TokenIds = Index | list[Index] | None
# Keys that any model may have and that say nothing about what it computes: names and
# versions, labels, how to generate, how to train, which kernels to use.
IGNORED = frozenset(
    [
        "architectures",
        "attn_implementation",
        "bad_words_ids",
        "begin_suppress_tokens",
        "chunk_size_feed_forward",
        "decoder_start_token_id",
        "diversity_penalty",
        "do_sample",
        "dtype",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "exponential_decay_length_penalty",
        "finetuning_task",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "gradient_checkpointing",
        "id2label",
        "initializer_range",
        "keys_to_ignore_at_inference",
        "label2id",
        "language",
        "length_penalty",
        "license",
        "max_length",
        "max_new_tokens",
        "min_length",
        "min_new_tokens",
        "model_max_length",
        "model_type",
        "n_special",
        "name_or_path",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_labels",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "pad_token_id",
        "predict_special_tokens",
        "prefix",
        "problem_type",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict",
        "return_dict_in_generate",
        "sep_token_id",
        "suppress_tokens",
        "tags",
        "task_specific_params",
        "temperature",
        "tf_legacy_loss",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torch_dtype",
        "torchscript",
        "typical_p",
        "unk_token_id",
        "use_bfloat16",
        "use_cache",
    ]
)
# Private attributes, and keys that a tool writes for itself.
TOOLS = re.compile(r"_.*|(transformers|unsloth|axolotl|trl|peft|onnx)([._].*)?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubConfig:
    """Base of the config of a family: keys that change the computation of any model.

    A subclass declares the keys that it reads, and lists in `ignored` those of its own
    that change nothing. Any other key is refused.

    Examples:
        >>> from mijax.io import Only, Size
        >>> from mijax.models import read_hub_config
        >>> @dataclasses.dataclass(frozen=True, kw_only=True)
        ... class TinyConfig(HubConfig):
        ...     num_layers: Size
        ...     attention_bias: Annotated[bool, Only(False)] = False
        >>> read_hub_config(TinyConfig, {"num_layers": 2}, "config.json").num_layers
        2
    """

    ignored: ClassVar[frozenset[str]] = frozenset()

    bos_token_id: TokenIds = None
    eos_token_id: TokenIds = None
    add_cross_attention: Annotated[bool, Only(False)] = False
    attn_logit_softcapping: Annotated[Any, Only(None)] = None
    final_logit_softcapping: Annotated[Any, Only(None)] = None
    is_decoder: bool = False
    is_encoder_decoder: Annotated[bool, Only(False)] = False
    logit_scale: Annotated[Any, Only(None, 1.0)] = None
    logits_soft_cap: Annotated[Any, Only(None)] = None
    pruned_heads: Annotated[Any, Only({}, None)] = None
    quantization_config: Annotated[Any, Only(None)] = None
    sliding_window: Annotated[Any, Only(None)] = None
    tie_encoder_decoder: Annotated[bool, Only(False)] = False
    use_sliding_window: Annotated[bool, Only(False)] = False


def read_hub_config(kind: type[C], config: Mapping[str, Any], path: str) -> C:
    """Check a Hugging Face config against the keys of a family.

    Args:
        kind: the keys of the family.
        config: the content of config.json.
        path: the file, named by errors.

    Returns:
        The keys that are read.

    Raises:
        LoadError: a key that is unknown, missing, of another type, out of range, or
            that asks for a computation that is not supported.
    """
    declared = {field.name for field in dataclasses.fields(kind)}
    skipped = IGNORED | kind.ignored
    content = {
        key: value
        for key, value in config.items()
        if key in declared or not (key in skipped or TOOLS.fullmatch(key))
    }
    return read_record(kind, content, path)


def first_id(ids: int | list[int] | None) -> int | None:
    """Return the first of the token ids that a config names, if it names any."""
    if isinstance(ids, list):
        return ids[0] if ids else None
    return ids


def check_heads(spec: Any, path: str) -> None:
    """Refuse a spec whose heads do not fit its sizes.

    Raises:
        LoadError: features that do not split into heads, or query heads that do not
            split into groups.
    """
    # Of a model that reads images too, its decoder.
    spec = getattr(spec, "text", spec)
    check_layers(spec, path)
    check_experts(spec, path)
    kv_heads = getattr(spec, "kv_heads", None)
    if kv_heads is not None:
        divide(spec.heads, kv_heads, path)
        divide(spec.head_dim, 2, path)
        check_rotated(spec, spec.head_dim, path)
    elif hasattr(spec, "heads") and not hasattr(spec, "head_dim"):
        head_dim = divide(spec.embed, spec.heads, path)
        check_rotated(spec, head_dim, path)


def check_layers(spec: Any, path: str) -> None:
    """Refuse lists of values by layer that do not have one for each.

    Raises:
        LoadError: another number of values than layers.
    """
    for name in ("windows", "rotates", "attends"):
        values = getattr(spec, name, [])
        if values and len(values) != spec.layers:
            raise LoadError(
                f"{path}: '{name}' has {len(values)} values for {spec.layers} layers: "
                "give one for each, or none."
            )


def check_experts(spec: Any, path: str) -> None:
    """Refuse a router that chooses more experts than a layer has.

    Raises:
        LoadError: more chosen experts than experts.
    """
    experts, top_k = getattr(spec, "experts", 1), getattr(spec, "top_k", 1)
    if top_k > experts:
        raise LoadError(
            f"{path}: {top_k} experts are chosen for each token, but a layer has "
            f"{experts}: give num_experts_per_tok up to {experts}."
        )


def check_rotated(spec: Any, head_dim: int, path: str) -> None:
    """Refuse a rotation of more features than a head has, or of an odd number.

    Raises:
        LoadError: another number of rotated features.
    """
    rotated = getattr(spec, "rotated", head_dim)
    if rotated > head_dim or (hasattr(spec, "rotated") and rotated % 2):
        raise LoadError(
            f"{path}: {rotated} features of a head are rotated, expected an even "
            f"number up to {head_dim}."
        )


def divide(total: int, parts: int, path: str) -> int:
    """Split an axis evenly.

    Raises:
        LoadError: it does not split.
    """
    if parts < 1 or total % parts:
        raise LoadError(f"{path}: {total} does not split into {parts} equal parts.")
    return total // parts
