"""LoRA adapters saved by peft, merged into weights while loading."""

import dataclasses
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float

from mijax._errors import LoadError, nearest
from mijax.io import Only, Positive, SafeTensors, Size, Tensors, read_json, read_record
from mijax.io.internal import check_weights

PREFIX = "base_model.model."
PART = re.compile(r"(?P<module>.+)\.lora_(?P<half>[AB])\.weight")
# Keys that say how an adapter was trained or which modules it has, which its tensors
# say too.
IGNORED = (
    *("auto_mapping", "base_model_name_or_path", "ensure_weight_tying"),
    *("eva_config", "exclude_modules", "inference_mode", "layers_pattern"),
    *("layers_to_transform", "lora_dropout", "megatron_core", "peft_version"),
    *("qalora_group_size", "revision", "target_modules", "task_type"),
    *("loftq_config", "runtime_config"),
)
# Keys that change the computation, which must all be empty.
EMPTY = (
    *("alora_invocation_tokens", "arrow_config", "corda_config", "enable_lora"),
    *("kasa_config", "merge_weights"),
    *("layer_replication", "lora_ga_config", "megatron_config", "modules_to_save"),
    *("monteclora_config", "target_parameters", "trainable_token_indices"),
    *("use_bdlora", "velora_config"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Keys in adapter_config.json that control merging."""

    peft_type: Annotated[str, Only("LORA")]
    r: Size
    lora_alpha: Positive
    rank_pattern: dict[str, Size] | None = None
    alpha_pattern: dict[str, Positive] | None = None
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    bias: Annotated[str, Only("none")] = "none"
    lora_bias: Annotated[bool, Only(False)] = False
    use_dora: Annotated[bool, Only(False)] = False
    use_qalora: Annotated[bool, Only(False)] = False
    init_lora_weights: Annotated[Any, Only(True, False, "gaussian", "eva")] = True


@dataclasses.dataclass(frozen=True)
class LowRank:
    r"""Change of one matrix, $s B A$.

    Attributes:
        a: $A$, `[rank, in]`.
        b: $B$, `[out, rank]`.
        scale: $s$, alpha over the rank, or over its square root (rsLoRA).
    """

    a: Float[np.ndarray, "rank in"]
    b: Float[np.ndarray, "out rank"]
    scale: float

    def matrix(self) -> Float[np.ndarray, "out in"]:
        """Return the change, in float32."""
        return self.scale * (self.b.astype(np.float32) @ self.a.astype(np.float32))


@dataclasses.dataclass(frozen=True)
class Adapter:
    """A LoRA adapter (Hu et al. 2021, arXiv:2106.09685).

    Attributes:
        parts: the change of each matrix, by the name of its module, such as
            `"model.layers.0.self_attn.q_proj"`.
        turned: whether files of the model hold matrices as `[in, out]` (GPT-2).
        file: the file of the parts.
    """

    parts: Mapping[str, LowRank]
    turned: bool
    file: Path


def read_adapter(folder: str | os.PathLike[str]) -> Adapter:
    """Load an adapter from a folder saved by peft.

    Args:
        folder: has adapter_config.json and adapter_model.safetensors.

    Returns:
        The adapter.

    Raises:
        LoadError: a file that is missing or broken, an adapter that is not plain LoRA,
            a key or tensor that is not known, or parts that do not fit each other.

    Examples:
        >>> import tempfile
        >>> read_adapter(tempfile.mkdtemp())
        Traceback (most recent call last):
        mijax._errors.LoadError: ...adapter_config.json does not exist...
    """
    path = Path(folder) / "adapter_config.json"
    config = read_config(read_json(path), path)
    tensors = SafeTensors(Path(folder) / "adapter_model.safetensors")
    halves: dict[str, dict[str, np.ndarray]] = {}
    for name in tensors.shapes:
        found = PART.fullmatch(name.removeprefix(PREFIX))
        if found is None or len(tensors.shapes[name]) != 2:
            raise LoadError(
                f"{tensors.path}: tensor '{name}' of shape {tensors.shapes[name]} is "
                "not supported, only matrices lora_A and lora_B for linear maps."
            )
        array = check_weights(tensors.read(name), name, tensors.path)
        halves.setdefault(found["module"], {})[found["half"]] = array
    if not halves:
        raise LoadError(f"{tensors.path} has no tensors, expected those of an adapter.")
    parts = {
        module: joined(config, module, given, tensors.path)
        for module, given in halves.items()
    }
    return Adapter(parts, config.fan_in_fan_out, tensors.path)


def read_config(content: Mapping[str, Any], path: Path) -> AdapterConfig:
    """Check the keys of a config.

    Raises:
        LoadError: a key that is unknown, missing or asks for more than plain LoRA.
    """
    for name in EMPTY:
        if content.get(name):
            raise LoadError(
                f"{path}: '{name}' is {content[name]!r:.60}, expected nothing: only "
                "plain LoRA is supported. Merge the adapter with peft and load that."
            )
    skipped = {*IGNORED, *EMPTY}
    kept = {key: value for key, value in content.items() if key not in skipped}
    return read_record(AdapterConfig, kept, path, thing="adapter")


def joined(
    config: AdapterConfig, module: str, halves: Mapping[str, np.ndarray], path: Path
) -> LowRank:
    """Combine the two factors of a change.

    Raises:
        LoadError: one factor only, another rank than the config says, or a pattern
            that is not a regular expression.
    """
    try:
        rank = matching(config.rank_pattern, module, config.r)
        alpha = matching(config.alpha_pattern, module, config.lora_alpha)
    except re.error as error:
        raise LoadError(
            f"{path}: 'rank_pattern' or 'alpha_pattern' of the config is not a regular "
            f"expression: {error}. Download the config again."
        ) from error
    shapes = {half: halves[half].shape for half in sorted(halves)}
    if set(shapes) != {"A", "B"} or not shapes["A"][0] == shapes["B"][1] == rank:
        raise LoadError(
            f"{path}: '{module}' has factors {shapes}, expected A of shape ({rank}, "
            f"in) and B of shape (out, {rank}). Use the config of these weights."
        )
    divisor = math.sqrt(rank) if config.use_rslora else rank
    return LowRank(halves["A"], halves["B"], alpha / divisor)


def matching(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """Return the value for the first pattern that matches the end of a name."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


class AdaptedTensors:
    """The tensors of a model's file with an adapter merged into them.

    Args:
        tensors: the tensors of the file.
        adapter: the adapter.
        turned: whether the file holds matrices as `[in, out]`.

    Raises:
        LoadError: the adapter changes a tensor that the file does not have, or one of
            another shape, or holds matrices the other way round.
    """

    def __init__(self, tensors: Tensors, adapter: Adapter, *, turned: bool) -> None:
        if adapter.turned != turned:
            order = "[in, out]" if turned else "[out, in]"
            raise LoadError(
                f"{adapter.file}: the config has fan_in_fan_out={adapter.turned}, and "
                f"{tensors.path} has matrices {order}. Set it to {str(turned).lower()}."
            )
        self.tensors, self.adapter = tensors, adapter
        self.path, self.shapes = tensors.path, tensors.shapes
        self.files = (*tensors.files, adapter.file)
        self.changes = {self._name(module): module for module in adapter.parts}
        for name, module in self.changes.items():
            part = adapter.parts[module]
            shape = (part.b.shape[0], part.a.shape[1])
            expected = shape[::-1] if adapter.turned else shape
            if self.shapes[name] != expected:
                raise LoadError(
                    f"{adapter.file}: the change of '{module}' has shape {expected}, "
                    f"'{name}' of the model {self.shapes[name]}. Use the model that "
                    "the adapter was trained on."
                )

    def _name(self, module: str) -> str:
        """Return the tensor of a module; files of bare models lack the first name."""
        name = f"{module}.weight"
        for known in (name, name.partition(".")[2]):
            if known in self.shapes:
                return known
        raise LoadError(
            f"{self.adapter.file} changes '{name}', which {self.path} does not have."
            f"{nearest(name, self.shapes)}"
        )

    def read(self, name: str) -> np.ndarray:
        """Read one tensor, in float32 where it is changed."""
        found = self.tensors.read(name)
        if name not in self.changes:
            return found
        change = self.adapter.parts[self.changes[name]].matrix()
        return found.astype(np.float32) + (change.T if self.adapter.turned else change)
