"""Makes vit.npz and dinov3.npz: tiny vision transformers with random weights.

Needs torch 2.13, transformers 5.24 and timm 1.0.31. Arrays are `CASE.weights.NAME`,
`CASE.image` and results: `CASE.blocks` after each block, `CASE.out`.
"""

import tempfile
from pathlib import Path

import numpy as np
import timm
import torch
import transformers
from safetensors.torch import load_file

HERE = Path(__file__).parent
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
IMAGE = {"image_size": 24, "patch_size": 8}


def randomized(model):
    """Give a model random weights, norms that are not trivial, and few bits."""
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape)
        if weight.ndim > 1:
            value = noise / max(weight[0].numel(), 1) ** 0.5
            value = 0.5 * noise if "token" in name or "pos" in name else value
        else:
            scale = ("norm" in name and name.endswith("weight")) or "scale" in name
            value = 0.3 * noise + float(scale or "gamma" in name or "lambda" in name)
        weight.data = value.half().float()
    return model.eval()


def found(model, image, out, blocks):
    """Return the arrays of a case."""
    state = model.state_dict()
    if hasattr(model, "save_pretrained"):  # files have other names than modules
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            state = load_file(Path(folder) / "model.safetensors")
    weights = {f"weights.{k}": v.half().numpy() for k, v in state.items()}
    blocks = np.stack([block[0].detach().numpy() for block in blocks])
    arrays = {
        "image": image[0].numpy(),
        "out": out[0].detach().numpy(),
        "blocks": blocks,
    }
    return arrays | weights


def vit():
    """A Hugging Face ViT with a classifier."""
    config = transformers.ViTConfig(
        **SIZES, **IMAGE, intermediate_size=48, num_labels=5
    )
    model = randomized(transformers.ViTForImageClassification(config))
    image = torch.randn(1, 3, 24, 24)
    out = model(image, output_hidden_states=True)
    return found(model, image, out.logits, out.hidden_states[1:])


def dinov2():
    """A DINOv2 with registers, an image of another size than its positions."""
    config = transformers.Dinov2WithRegistersConfig(
        **SIZES, image_size=24, patch_size=8, mlp_ratio=2, num_register_tokens=2
    )
    model = randomized(transformers.Dinov2WithRegistersModel(config))
    image = torch.randn(1, 3, 40, 32)
    out = model(image, output_hidden_states=True)
    return found(model, image, out.last_hidden_state, out.hidden_states[1:])


def dinov3(gated):
    """A DINOv3 with registers, an image that is not square."""
    config = transformers.DINOv3ViTConfig(
        **SIZES,
        image_size=24,
        patch_size=8,
        intermediate_size=48,
        num_register_tokens=2,
        use_gated_mlp=gated,
        hidden_act="silu" if gated else "gelu",
    )
    model = randomized(transformers.DINOv3ViTModel(config))
    image = torch.randn(1, 3, 40, 24)
    out = model(image, output_hidden_states=True)
    return found(model, image, out.last_hidden_state, out.hidden_states[1:])


def timm_vit():
    """A timm ViT with registers, LayerScale and pooling by the mean."""
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=24,
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=4,
        mlp_ratio=2,
        num_classes=5,
        init_values=0.1,
        reg_tokens=2,
        global_pool="avg",
    )
    model = randomized(model)
    image, blocks = torch.randn(1, 3, 24, 24), []
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, out: blocks.append(out))
    return found(model, image, model(image), blocks)


def clip():
    """A CLIP, both towers."""
    text = {
        "vocab_size": 50,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "max_position_embeddings": 9,
        "eos_token_id": 49,
        "bos_token_id": 48,
        "pad_token_id": 0,
    }
    vision = dict(**SIZES, **IMAGE, intermediate_size=48)
    config = transformers.CLIPConfig(
        text_config=text, vision_config=vision, projection_dim=16
    )
    model = randomized(transformers.CLIPModel(config))
    model.logit_scale.data = torch.tensor(2.0)
    image = torch.randn(1, 3, 24, 24)
    tokens = torch.tensor(
        [[48, 3, 7, 11, 49, 0, 0], [48, 9, 4, 49, 0, 0, 0], [48, 1, 2, 3, 5, 6, 49]]
    )
    out = model(pixel_values=image, input_ids=tokens, output_hidden_states=True)
    blocks = model.vision_model(image, output_hidden_states=True).hidden_states[1:]
    arrays = found(model, image, out.logits_per_image, blocks)
    return arrays | {
        "tokens": tokens.numpy(),
        "image_embed": out.image_embeds[0].detach().numpy(),
        "text_embeds": out.text_embeds.detach().numpy(),
    }


def positions():
    """A grid of positions, made smaller and larger."""
    table = torch.randn(1, 3, 5, 6)
    arrays = {"table": table[0].permute(1, 2, 0).contiguous().numpy()}
    for name, size in {"smaller": (3, 4), "larger": (7, 6)}.items():
        for smooth in (False, True):
            out = torch.nn.functional.interpolate(
                table, size, mode="bicubic", align_corners=False, antialias=smooth
            )
            arrays[f"{name}.{smooth}"] = out[0].permute(1, 2, 0).contiguous().numpy()
    return arrays


def main():
    """Write all cases."""
    write(
        "vit.npz",
        seed=0,
        vit=vit,
        dinov2=dinov2,
        timm=timm_vit,
        clip=clip,
        positions=positions,
    )
    write(
        "dinov3.npz",
        seed=3,
        dinov3=lambda: dinov3(gated=False),
        dinov3_gated=lambda: dinov3(gated=True),
    )


def write(file, *, seed, **cases):
    """Write some cases to one file."""
    torch.manual_seed(seed)
    arrays = {}
    for case, make in cases.items():
        arrays |= {f"{case}.{name}": array for name, array in make().items()}
    np.savez_compressed(HERE / file, **arrays)


if __name__ == "__main__":
    main()
