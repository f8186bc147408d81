"""Reading config.json: every key is read, fixed, ignored, or refused by name."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from mijax._errors import LoadError, nearest
from mijax.io import Gguf
from mijax.nn import GELU, ReLU, SiLU

ACTIVATIONS = {
    "gelu_new": GELU(approximate=True),
    "gelu_pytorch_tanh": GELU(approximate=True),
    "gelu_fast": GELU(approximate=True),
    "gelu": GELU(approximate=False),
    "relu": ReLU(),
    "silu": SiLU(),
    "swish": SiLU(),
}
# Keys of every Hugging Face config that say nothing about what the model computes.
IGNORED = frozenset(
    [
        "_name_or_path",
        "architectures",
        "bos_token_id",
        "chunk_size_feed_forward",
        "dtype",
        "eos_token_id",
        "id2label",
        "initializer_range",
        "keys_to_ignore_at_inference",
        "label2id",
        "model_type",
        "name_or_path",
        "num_labels",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "return_dict",
        "task_specific_params",
        "tokenizer_class",
        "torch_dtype",
        "torchscript",
        "transformers.js_config",
        "transformers_version",
        "unk_token_id",
        "use_cache",
        "_attn_implementation_autoset",
        "gradient_checkpointing",
        "license",
        "language",
        "tags",
        "problem_type",
        "sep_token_id",
    ]
)
# Keys that change the computation of any family, with the values that change nothing.
FIXED: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "is_decoder": (True, False),
    "is_encoder_decoder": (False,),
    "logit_scale": (None, 1.0),
    "logits_soft_cap": (None,),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "sliding_window": (None,),
    "use_sliding_window": (False,),
}


@dataclasses.dataclass(frozen=True)
class Keys:
    """The keys of a family's config.json.

    Attributes:
        read: keys that go into the spec.
        fixed: keys that change the computation, with the values that are supported.
        ignored: keys that change nothing.
    """

    read: frozenset[str]
    fixed: Mapping[str, tuple[Any, ...]]
    ignored: frozenset[str]

    def check(self, config: Mapping[str, Any], path: str) -> None:
        """Refuses a key that is unknown or asks for what is not supported.

        Raises:
            LoadError: names the first such key.
        """
        fixed = {**FIXED, **self.fixed}
        known = self.read | fixed.keys() | self.ignored | IGNORED
        for key, value in config.items():
            if key in fixed and value not in fixed[key]:
                allowed = " or ".join(repr(option) for option in fixed[key])
                raise LoadError(
                    f"{path}: '{key}' is {value!r}, which changes what the model "
                    f"computes; only {allowed} is supported."
                )
            if key not in known:
                hint = nearest(key, sorted(known)) if close(key, known) else ""
                raise LoadError(
                    f"{path}: unknown key '{key}' = {value!r} may change what the "
                    f"model computes.{hint} Remove it if it does not."
                )


def check_gguf(gguf: Gguf, name: str, known: Collection[str]) -> None:
    """Refuses metadata of the architecture that the family does not read.

    Raises:
        LoadError: names the first such key.
    """
    for key in gguf.fields:
        if key.startswith(f"{name}.") and key.removeprefix(f"{name}.") not in known:
            raise LoadError(
                f"{gguf.path}: metadata '{key}' = {gguf.metadata(key)!r} may change "
                "what the model computes and is not supported."
            )


def close(key: str, known: Collection[str]) -> bool:
    """Whether a hint would name a few keys and not list all of them."""
    return nearest(key, sorted(known)).startswith(" Did")


def need(config: Mapping[str, Any], key: str, path: str) -> Any:
    """Reads a key that has to be there.

    Raises:
        LoadError: it is not.
    """
    if config.get(key) is None:
        raise LoadError(f"{path}: key '{key}' is missing; the model cannot be built.")
    return config[key]


def activation_name(name: Any, path: str) -> str:
    """Checks the name of an activation.

    Raises:
        LoadError: there is no such activation.
    """
    if name not in ACTIVATIONS:
        raise LoadError(
            f"{path}: activation {name!r} is not supported."
            f"{nearest(str(name), ACTIVATIONS)}"
        )
    return name


def divide(total: int, parts: int, path: str) -> int:
    """Splits an axis evenly.

    Raises:
        LoadError: it does not split.
    """
    if parts < 1 or total % parts:
        raise LoadError(f"{path}: {total} features do not split into {parts} heads.")
    return total // parts
