"""Tensors and presets of vision transformers."""

from typing import Any

import numpy as np

from mijax.models._attention_pool import pool_rules
from mijax.models._family import Family, Preset, Rule, Table, same
from mijax.models._image_input import ImageInput
from mijax.models._leaves import plain_names, rules
from mijax.models._vit import ViTSpec, check, init
from mijax.models._vit_files import VisionTensors


def table(spec: ViTSpec) -> Table:
    """Return names and shapes of the tensors, in the names of `VisionTensors`."""
    check(spec)
    parts = {name: name for name in ("norm_1", "norm_2", *"qkvo", "in", "out")}
    if spec.gated:
        parts["gate"] = "gate"
    names = plain_names({}, "layers.{layer}.", parts)
    if not spec.qkv_bias:
        for letter in "qkv":
            del names[f"blocks.attention.b_{letter}"]
    elif not spec.key_bias:
        del names["blocks.attention.b_k"]
    embed = spec.embed
    found = [*rules(spec, names), *_embedding_rules(spec)]
    for name, there in (("pre_norm", spec.pre_norm), ("norm", spec.final_norm)):
        for end in ("weight", "bias") if there else ():
            found.append(Rule(f"{name}.{end}", (embed,), {f"{name}.{end}": same}))
    if spec.pool == "attention":
        found += pool_rules(spec)
    width = embed
    if spec.hidden:
        width = spec.hidden
        found.append(Rule("hidden.weight", (width, embed), {"hidden.weight": same}))
        found.append(Rule("hidden.bias", (width,), {"hidden.bias": same}))
    if spec.classes:
        shape = (spec.classes, width)
        found.append(Rule("head.weight", shape, {"head.weight": same}))
        if spec.head_bias:
            found.append(Rule("head.bias", shape[:1], {"head.bias": same}))
    return Table(tuple(found))


def _embedding_rules(spec: ViTSpec) -> list[Rule]:
    """Return the rules of everything before the blocks."""
    embed, grid, first = spec.embed, spec.grid, spec.positioned

    def of_patches(x: np.ndarray) -> np.ndarray:
        return x[first:].reshape(grid, grid, embed)

    positions = {"positions": of_patches}
    if first:
        positions["prefix_positions"] = lambda x: x[:first]
    shape = (embed, spec.channels, spec.patch, spec.patch)
    found = [Rule("patch.weight", shape, {"patch.weight": same})]
    if spec.theta is None:
        found.append(Rule("positions", (first + grid**2, embed), positions))
    if spec.class_token:
        found.append(Rule("cls", (1, embed), {"class_token": same}))
    if spec.registers:
        shape = (spec.registers, embed)
        found.append(Rule("registers", shape, {"registers": same}))
    if spec.patch_bias:
        column = {"patch.bias": lambda x: x[:, None, None]}
        found.append(Rule("patch.bias", (embed,), column))
    return found


def sized(embed: int, layers: int, heads: int, **more: Any) -> ViTSpec:
    """Return a spec with four neurons for each feature."""
    return ViTSpec(embed=embed, layers=layers, heads=heads, mlp=4 * embed, **more)


HALF = ImageInput((0.5,) * 3, (0.5,) * 3, resize=224, crop=224)
DINO = ImageInput(resize=256, crop=224, method="cubic")
MNIST = ImageInput((0.1307,), (0.3081,))
DINOV3 = ImageInput(resize=(224, 224))
DINO_SIZES = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
V3: dict[str, Any] = {
    "patch": 16,
    "image": 224,
    "registers": 4,
    "positioned": 0,
    "key_bias": False,
    "theta": 100.0,
    "eps": 1e-5,
}


def dinov3(embed: int, layers: int, heads: int, mlp: int, **more: Any) -> Preset:
    """Return the preset of a DINOv3."""
    sizes: dict[str, Any] = {"embed": embed, "layers": layers, "heads": heads}
    spec = ViTSpec(**{**sizes, "mlp": mlp, **V3, **more})
    return Preset(spec, input=DINOV3)


GATED: dict[str, Any] = {"gated": True, "activation": "silu"}
VIT = Family(
    name="vit",
    spec=ViTSpec,
    init=init,
    presets={
        "vit-base-patch16-224": Preset(
            sized(768, 12, 12, patch=16, image=224, classes=1000, eps=1e-12),
            input=HALF,
        ),
        **{
            f"dinov2-{name}": Preset(sized(*sizes, patch=14, image=518), input=DINO)
            for name, sizes in DINO_SIZES.items()
        },
        **{
            f"dinov2-with-registers-{name}": Preset(
                sized(*sizes, patch=14, image=518, registers=4, antialias=True),
                input=DINO,
            )
            for name, sizes in DINO_SIZES.items()
        },
        "dinov3-vits16": dinov3(384, 12, 6, 1536),
        "dinov3-vits16plus": dinov3(384, 12, 6, 1536, **GATED),
        "dinov3-vitb16": dinov3(768, 12, 12, 3072),
        "dinov3-vitl16": dinov3(1024, 24, 16, 4096),
        "dinov3-vith16plus": dinov3(1280, 32, 20, 5120, **GATED),
        "dinov3-vit7b16": dinov3(4096, 40, 32, 8192, qkv_bias=False, **GATED),
        "vit-mnist": Preset(
            ViTSpec(
                layers=6,
                embed=64,
                heads=8,
                mlp=128,
                patch=7,
                image=28,
                channels=1,
                classes=10,
                hidden=128,
                eps=1e-5,
                scale=64**-0.5,
                final_norm=False,
                qkv_bias=False,
            ),
            input=MNIST,
        ),
    },
    table=table,
    renamed=VisionTensors,
)
