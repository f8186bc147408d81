"""The families that there are."""

from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import PRNGKeyArray

from mijax._errors import LoadError, nearest
from mijax.models._albert import ALBERT
from mijax.models._attention_only import ATTENTION_ONLY
from mijax.models._bert import BERT
from mijax.models._bloom import BLOOM
from mijax.models._deepseek_v3 import DEEPSEEK_V3
from mijax.models._distilbert import DISTILBERT
from mijax.models._falcon import FALCON
from mijax.models._family import Family, Preset
from mijax.models._gemma import GEMMA
from mijax.models._gemma2 import GEMMA2
from mijax.models._gemma3 import GEMMA3
from mijax.models._gemma3_images import GEMMA3_IMAGES
from mijax.models._gemma3_multimodal import GEMMA3_MULTIMODAL
from mijax.models._gpt2 import GPT2
from mijax.models._gpt_neo import GPT_NEO
from mijax.models._gpt_neox import GPT_NEOX
from mijax.models._gpt_oss import GPT_OSS
from mijax.models._gptj import GPTJ
from mijax.models._granite import GRANITE
from mijax.models._idefics3 import IDEFICS3, SMOLVLM
from mijax.models._init import check_dtype
from mijax.models._llama import LLAMA
from mijax.models._llava import LLAVA
from mijax.models._mamba import MAMBA
from mijax.models._mamba2 import MAMBA2
from mijax.models._mistral import MISTRAL
from mijax.models._mixtral import MIXTRAL
from mijax.models._modernbert import MODERNBERT
from mijax.models._olmo2 import OLMO2
from mijax.models._olmo3 import OLMO3
from mijax.models._olmoe import OLMOE
from mijax.models._opt import OPT
from mijax.models._phi import PHI
from mijax.models._phi3 import PHI3
from mijax.models._qwen2 import QWEN2
from mijax.models._qwen3 import QWEN3
from mijax.models._qwen3_5 import QWEN3_5
from mijax.models._qwen3_moe import QWEN3_MOE
from mijax.models._qwen3_next import QWEN3_NEXT
from mijax.models._roberta import ROBERTA
from mijax.models._smollm3 import SMOLLM3
from mijax.models._t5 import T5
from mijax.models._whisper import WHISPER

FAMILIES: tuple[Family, ...] = (
    GPT2,
    LLAMA,
    MISTRAL,
    MIXTRAL,
    QWEN2,
    QWEN3,
    QWEN3_MOE,
    QWEN3_NEXT,
    QWEN3_5,
    GPT_NEOX,
    GEMMA,
    GEMMA2,
    GEMMA3,
    GEMMA3_MULTIMODAL,
    OLMO2,
    OLMO3,
    OLMOE,
    GPT_OSS,
    DEEPSEEK_V3,
    PHI3,
    SMOLLM3,
    GRANITE,
    PHI,
    GPT_NEO,
    GPTJ,
    OPT,
    BLOOM,
    FALCON,
    MAMBA,
    MAMBA2,
    BERT,
    ROBERTA,
    DISTILBERT,
    ALBERT,
    MODERNBERT,
    T5,
    WHISPER,
    GEMMA3_IMAGES,
    LLAVA,
    IDEFICS3,
    SMOLVLM,
    ATTENTION_ONLY,
)


def presets() -> dict[str, Preset]:
    """Every named spec, by name.

    Examples:
        >>> presets()["gpt2"].spec.layers
        12
    """
    return {name: p for family in FAMILIES for name, p in family.presets.items()}


def preset(name: str) -> Any:
    """The spec of a name.

    Args:
        name: for example `"gpt2"` or `"attn-only-2l"`.

    Returns:
        The spec.

    Raises:
        LoadError: there is no such name.

    Examples:
        >>> preset("smollm2-135m").kv_heads
        3
    """
    if name not in presets():
        raise LoadError(f"There is no preset {name!r}.{nearest(name, presets())}")
    return presets()[name].spec


def family_of(spec: Any) -> Family:
    """The family that a spec belongs to.

    Raises:
        LoadError: it belongs to none.
    """
    for family in FAMILIES:
        if isinstance(spec, family.spec):
            return family
    kinds = ", ".join(family.spec.__name__ for family in FAMILIES)
    raise LoadError(f"{type(spec).__name__} is no spec of a model, expected {kinds}.")


def with_images(family: Family, path: str) -> Family:
    """The family that reads images too.

    Raises:
        LoadError: the models of a family read no images.
    """
    found = GEMMA3_IMAGES if family is GEMMA3_MULTIMODAL else family
    if found.reader is None:
        raise LoadError(
            f"{path}: a model of type '{family.name}' reads no images. Load it without "
            "images=True."
        )
    return found


def reader_of(spec: Any) -> Any:
    """The preprocessing of images or audio of a spec, `None` for text only."""
    make = family_of(spec).reader
    return None if make is None else make(spec)


def family_named(name: Any, path: str) -> Family:
    """The family of a `model_type`.

    Raises:
        LoadError: there is none.
    """
    for family in FAMILIES:
        if family.name == name:
            return family
    hint = nearest(str(name), [family.name for family in FAMILIES])
    raise LoadError(f"{path}: model_type {name!r} is not supported.{hint}")


def init(spec: Any, key: PRNGKeyArray, *, dtype: DTypeLike = jnp.float32) -> Any:
    """Makes a model with random weights.

    Args:
        spec: a spec, or the name of a preset.
        key: seed of the weights.
        dtype: precision of the weights, such as `"bfloat16"`.

    Returns:
        The model.

    Raises:
        LoadError: there is no such preset or spec.
        ConfigError: a dtype that is not of floating-point numbers.

    Examples:
        >>> import jax, mijax.models
        >>> spec = mijax.models.AttentionOnlySpec(layers=1, embed=16, vocab=50)
        >>> mijax.models.init(spec, jax.random.key(0)).n_layers
        1
    """
    check_dtype(dtype)
    spec = preset(spec) if isinstance(spec, str) else spec
    return family_of(spec).init(spec, key, dtype)
