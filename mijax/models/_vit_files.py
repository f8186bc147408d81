"""Names of vision transformers in files of timm, Hugging Face and others.

All are read under one set of names: `layers.3.q.weight`, `layers.3.norm_1.bias`,
`patch.weight`, `positions`. Queries, keys and values that a file has in one tensor are
split, and LayerScale is multiplied into what it scales: a block with LayerScale is a
block whose attention and MLP write less.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from mijax._errors import LoadError
from mijax.io import Tensors

# From names in files to ours: timm; Hugging Face's ViT, DINOv2, DINOv3 and CLIP;
# vit-pytorch.
NAMES = (
    (r"patch_embed\.proj\.", "patch."),
    (r"embeddings\.patch_embeddings\.projection\.", "patch."),
    (r"embeddings\.patch_embedding\.", "patch."),
    (r"embeddings\.patch_embeddings\.", "patch."),
    (r"patch_to_embedding\.", "patch."),
    (r"(embeddings\.)?(cls_token|class_embedding)$", "cls"),
    (r"reg_token$|embeddings\.register_tokens$", "registers"),
    (r"pos_embed(ding)?$|embeddings\.position_embeddings?(\.weight)?$", "positions"),
    # An export to ONNX has positions in two parts.
    (r"embeddings\.Concat_\d+$", "first_position"),
    (r"embeddings\.Reshape_\d+$", "patch_positions"),
    (r"norm_pre\.|pre_layrnorm\.", "pre_norm."),
    (r"norm\.|fc_norm\.|layernorm\.|post_layernorm\.", "norm."),
    (r"head\.|classifier\.", "head."),
    (r"mlp_head\.0\.", "hidden."),
    (r"mlp_head\.2\.", "head."),
    (r"visual_projection\.", "head."),
    (
        r"(?:blocks|encoder\.layers?|(?:model\.)?layers?|transformer\.layers)\.(\d+)\.",
        r"layers.\1.",
    ),
)
PARTS = (
    (r"norm1\.|layernorm_before\.|layer_norm1\.|0\.fn\.norm\.", "norm_1."),
    (r"norm2\.|layernorm_after\.|layer_norm2\.|1\.fn\.norm\.", "norm_2."),
    (r"attn\.qkv\.|0\.fn\.fn\.to_qkv\.", "qkv."),
    (r"attention\.attention\.query\.|(self_attn|attention)\.q_proj\.", "q."),
    (r"attention\.attention\.key\.|(self_attn|attention)\.k_proj\.", "k."),
    (r"attention\.attention\.value\.|(self_attn|attention)\.v_proj\.", "v."),
    (
        r"attn\.proj\.|attention\.output\.dense\.|self_attn\.out_proj\."
        r"|attention\.o_proj\.|0\.fn\.fn\.to_out\.",
        "o.",
    ),
    (r"mlp\.gate_proj\.", "gate."),
    (r"mlp\.fc1\.|mlp\.up_proj\.|intermediate\.dense\.|1\.fn\.fn\.net\.0\.", "in."),
    (r"mlp\.fc2\.|mlp\.down_proj\.|output\.dense\.|1\.fn\.fn\.net\.2\.", "out."),
    (r"(ls|layer_scale)1\.(gamma|lambda1)$", "scale_1"),
    (r"(ls|layer_scale)2\.(gamma|lambda1)$", "scale_2"),
)
# Towers and wrappers whose names come first; masks of pretraining and poolers of models
# without a classifier compute nothing here.
START = re.compile(r"(vit|dinov2|dinov2_with_registers|vision_model|backbone)\.")
UNUSED = re.compile(
    r".*(mask_token|position_ids)$|pooler\.dense\.(weight|bias)$", re.DOTALL
)
SCALED = {"o": "scale_1", "out": "scale_2"}
SPLIT = ("first_position", "patch_positions")
TOKENS = ("cls", "registers", "positions")
LAYER = re.compile(r"(layers\.\d+\.)(\w+)\.(weight|bias)$")


class Part(NamedTuple):
    """Recipe for one leaf from the tensors of a file.

    Attributes:
        sources: names in the file.
        shape: its shape.
        make: from the tensors to it.
    """

    sources: tuple[str, ...]
    shape: tuple[int, ...]
    make: Callable[..., np.ndarray]


def our_name(name: str) -> str:
    """Return our name of a tensor; what is not known keeps its name."""
    short = START.sub("", name, count=1)
    for pattern, new in NAMES:
        found = re.match(pattern, short)
        if found is None:
            continue
        rest = short[found.end() :]
        if not new.startswith("layers"):
            return new + rest
        for part, ours in PARTS:
            inner = re.match(part, rest)
            if inner is not None:
                return found.expand(new) + ours + rest[inner.end() :]
    return name


class VisionTensors:
    """Tensors of a vision transformer under our names.

    Args:
        source: the file.

    Raises:
        LoadError: two tensors with one name, such as both kinds of names.
    """

    def __init__(self, source: Tensors) -> None:
        self.source, self.path, self.files = source, source.path, source.files
        named: dict[str, str] = {}
        for name in source.shapes:
            ours = our_name(name)
            if UNUSED.match(name) and ours == name:
                continue
            if ours in named:
                raise LoadError(
                    f"{source.path}: '{name}' and '{named[ours]}' are the same part of "
                    "the model. Give a file of one model."
                )
            named[ours] = name
        self.parts = self._scaled(self._split(named), named)
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: part.shape for name, part in self.parts.items()
        }

    def read(self, name: str) -> np.ndarray:
        """Read one tensor."""
        part = self.parts[name]
        return part.make(*(self.source.read(source) for source in part.sources))

    def _split(self, named: Mapping[str, str]) -> dict[str, Part]:
        """Return plain parts, and queries, keys and values of fused ones."""
        parts: dict[str, Part] = {}
        if all(name in named for name in SPLIT):
            names = tuple(named[name] for name in SPLIT)
            parts["positions"] = _joined(names, self.source.shapes)
            named = {k: name for k, name in named.items() if k not in SPLIT}
        for ours, name in named.items():
            shape = self.source.shapes[name]
            if ours in TOKENS and shape:
                new = (math.prod(shape[:-1]), shape[-1])
                parts[ours] = Part((name,), new, lambda x, new=new: x.reshape(new))
                continue
            if ours == "patch.weight" and len(shape) == 2:
                parts[ours] = _flat_patch(name, shape)
                continue
            if ".qkv." not in ours or not shape or shape[0] % 3:
                parts[ours] = Part((name,), shape, lambda x: x)
                continue
            for i, letter in enumerate("qkv"):
                third = (shape[0] // 3, *shape[1:])
                parts[ours.replace(".qkv.", f".{letter}.")] = Part(
                    (name,), third, lambda x, i=i: np.split(x, 3)[i]
                )
        return parts

    def _scaled(
        self, parts: dict[str, Part], named: Mapping[str, str]
    ) -> dict[str, Part]:
        """Multiply LayerScale into the tensors that it scales."""
        used = set()
        for name, part in list(parts.items()):
            found = LAYER.match(name)
            if found is None or found[2] not in SCALED:
                continue
            scale = found[1] + SCALED[found[2]]
            if scale in named:
                used.add(scale)
                parts[name] = Part((*part.sources, named[scale]), part.shape, _times)
        return {name: part for name, part in parts.items() if name not in used}


def _flat_patch(name: str, shape: tuple[int, ...]) -> Part:
    """Return a matrix of patches, flat as rows, columns, channels, as a convolution."""
    channels = 1 if math.isqrt(shape[1]) ** 2 == shape[1] else 3
    side = math.isqrt(shape[1] // channels)

    def make(x: np.ndarray) -> np.ndarray:
        return x.reshape(-1, side, side, channels).transpose(0, 3, 1, 2)

    return Part((name,), (shape[0], channels, side, side), make)


def _joined(names: tuple[str, ...], shapes: Mapping[str, tuple[int, ...]]) -> Part:
    """Return two tensors of positions as one table."""
    width = shapes[names[0]][-1]
    count = sum(math.prod(shapes[name]) for name in names) // width

    def make(*parts: np.ndarray) -> np.ndarray:
        return np.concatenate([x.reshape(-1, width) for x in parts])

    return Part(names, (count, width), make)


def _times(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Scale the outputs of a matrix `[out, in]`, or a bias."""
    scale = scale.astype(np.float32)
    return x.astype(np.float32) * (scale[:, None] if x.ndim == 2 else scale)
