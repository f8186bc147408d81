"""Tiny models of images and text, and what `transformers` computes with them.

Environment of its own (Python 3.11, CPU): torch==2.13.0, transformers==5.24.0,
safetensors==0.8.0, numpy; no torchvision. No network. Run from anywhere, for all models
or some:

    python tests/golden/make_vision_language.py [NAME ...]

Writes `vision_language/<name>.npz`; see README.md of this folder. The weights are not
stored: `tests/family_weights.py` makes them again from their names and shapes.
"""

import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from family_weights import weights

HERE = Path(__file__).parent / "vision_language"
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
IMAGE = {"image_size": 12, "patch_size": 4}
ROPE = {"rope_type": "default", "rope_theta": 100.0}
TEXT = SIZES | {
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 96,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
PLACE, STEPS = 62, 4


def weighted(config, kind):
    """Save a model as transformers does, give it other weights, and load it again."""
    model = kind(config)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        model.save_pretrained(folder)
        shapes = {key: value.shape for key, value in load_file(path).items()}
        save_file(weights(shapes), path, {"format": "pt"})
        model = kind.from_pretrained(folder, attn_implementation="eager").eval()
        content = (Path(folder) / "config.json").read_text()
    texts = {"config": content, "shapes": json.dumps(shapes)}
    return model, {k: np.frombuffer(v.encode(), np.uint8) for k, v in texts.items()}


def outputs_of(modules):
    """Return a list that fills with the outputs of modules as they run."""
    found = []

    def keep(_module, _args, out):
        found.append((out if isinstance(out, torch.Tensor) else out[0]).numpy())

    for module in modules:
        module.register_forward_hook(keep)
    return found


def pixels(*shape):
    """Return preprocessed images with few bits."""
    return torch.randn(*shape).half().float()


def siglip():
    """Both towers, an image and two texts."""
    text = SIZES | {"vocab_size": 40, "max_position_embeddings": 7}
    config = transformers.SiglipConfig(
        text_config=text | {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3},
        vision_config=SIZES | IMAGE,
    )
    model, arrays = weighted(config, transformers.SiglipModel)
    image = pixels(1, 3, 12, 12)
    tokens = torch.tensor([[5, 9, 30, 3, 1, 1, 1], [4, 8, 7, 6, 39, 3, 1]])
    blocks = outputs_of(model.vision_model.encoder.layers)
    texts = outputs_of(model.text_model.encoder.layers)
    out = model(input_ids=tokens, pixel_values=image)
    return arrays | {
        "image": image[0].numpy(),
        "tokens": tokens.numpy(),
        "blocks": np.stack(blocks)[:, 0],
        "text_blocks": np.stack(texts),
        "pooled": out.vision_model_output.pooler_output[0].numpy(),
        "image_embed": out.image_embeds[0].numpy(),
        "text_embeds": out.text_embeds.numpy(),
        "out": out.logits_per_image[0].numpy(),
    }


def expanded(ids, count):
    """Write every placeholder as many times as an image has tokens."""
    ids = torch.tensor(ids)
    return ids.repeat_interleave(torch.where(ids == PLACE, count, 1))[None]


def joint(config, kind, towers, images, count, *, together=False):
    """Run a prompt with one image and one with two.

    Args:
        config: the config.
        kind: class of the model.
        towers: from the model to the blocks of its image tower and of its text tower.
        images: three images, as the model takes those of a prompt: all in one array.
        count: tokens of an image.
        together: True for a model in which the tokens of an image read each other.
    """
    model, arrays = weighted(config, kind)
    vision, text = (outputs_of(blocks) for blocks in towers(model))
    prompts = {
        "one": ([0, 5, PLACE, 9, 33, 7], images[:1]),
        "two": ([0, PLACE, 17, 4, PLACE, 8], images[1:]),
    }
    for name, (ids, shown) in prompts.items():
        tokens = expanded(ids, count)
        vision.clear(), text.clear()
        kinds = {"token_type_ids": (tokens == PLACE).long()} if together else {}
        out = model(input_ids=tokens, pixel_values=shown, **kinds)
        arrays |= {
            f"{name}.ids": np.array(ids),
            f"{name}.images": shown.reshape(-1, *shown.shape[-3:]).numpy(),
            f"{name}.tokens": tokens[0].numpy(),
            f"{name}.logits": out.logits[0].numpy(),
            f"{name}.vision": np.stack(vision),
            f"{name}.blocks": np.stack(text)[:, 0],
        }
        new = model.generate(
            input_ids=tokens, pixel_values=shown, max_new_tokens=STEPS, do_sample=False,
            attention_mask=torch.ones_like(tokens), pad_token_id=0, eos_token_id=None,
            **kinds,
        )  # fmt: skip
        arrays[f"{name}.generated"] = new[0, tokens.shape[1] :].numpy()
    return arrays


def llava():
    """A CLIP tower read before its last block, and a Llama."""
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(
            **SIZES | {"num_hidden_layers": 3}, **IMAGE
        ),
        text_config=transformers.LlamaConfig(**TEXT, rope_parameters=ROPE),
        image_token_index=PLACE,
        image_seq_length=9,
    )
    kind = transformers.LlavaForConditionalGeneration
    towers = lambda model: (  # noqa: E731
        model.model.vision_tower.encoder.layers,
        model.model.language_model.layers,
    )
    return joint(config, kind, towers, pixels(3, 3, 12, 12), 9)


def shuffled(kind, vision, whole, *, factor, side, tied):
    """A SigLIP tower with six positions a side, four features for each image."""
    config = whole(
        vision_config=vision(**SIZES, image_size=24, patch_size=4),
        text_config=transformers.LlamaConfig(
            **TEXT, rope_parameters=ROPE, tie_word_embeddings=tied
        ),
        image_token_id=PLACE,
        scale_factor=factor,
        tie_word_embeddings=tied,
        pad_token_id=0,
    )
    towers = lambda model: (  # noqa: E731
        model.model.vision_model.encoder.layers,
        model.model.text_model.layers,
    )
    return joint(config, kind, towers, Stacked(pixels(3, 3, side, side)), 4)


class Stacked:
    """Images that the model takes with an axis of prompts."""

    def __init__(self, images):
        self.images = images

    def __getitem__(self, index):
        return self.images[index][None]


def idefics3():
    """Images of fewer patches than positions, and a head that is not tied."""
    return shuffled(
        transformers.Idefics3ForConditionalGeneration,
        transformers.models.idefics3.configuration_idefics3.Idefics3VisionConfig,
        transformers.Idefics3Config,
        factor=2,
        side=16,
        tied=False,
    )


def smolvlm():
    """Images of as many patches as positions, and a tied head."""
    return shuffled(
        transformers.SmolVLMForConditionalGeneration,
        transformers.models.smolvlm.configuration_smolvlm.SmolVLMVisionConfig,
        transformers.SmolVLMConfig,
        factor=3,
        side=24,
        tied=True,
    )


def gemma3_images():
    """Features that read each other, with windows shorter than an image."""
    local = {"rope_type": "default", "rope_theta": 100.0}
    full = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0}
    config = transformers.Gemma3Config(
        vision_config=transformers.SiglipVisionConfig(
            **SIZES, image_size=24, patch_size=4, vision_use_head=False
        ),
        text_config=transformers.Gemma3TextConfig(
            **TEXT,
            head_dim=8,
            rope_parameters={"sliding_attention": local, "full_attention": full},
            sliding_window=5,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
            query_pre_attn_scalar=5,
        ),
        mm_tokens_per_image=9,
        image_token_index=PLACE,
        boi_token_index=61,
        eoi_token_index=63,
    )
    towers = lambda model: (  # noqa: E731
        model.model.vision_tower.encoder.layers,
        model.model.language_model.layers,
    )
    kind = transformers.Gemma3ForConditionalGeneration
    images = pixels(3, 3, 24, 24)
    return joint(config, kind, towers, images, 9, together=True)


def tiles():
    """Images as Idefics3 cuts them, and the text that stands for them."""
    from transformers.models.idefics3 import (  # noqa: PLC0415
        image_processing_pil_idefics3,
        processing_idefics3,
    )

    longest, side = {"longest_edge": 32}, {"longest_edge": 16}
    cut = image_processing_pil_idefics3.Idefics3ImageProcessorPil(
        size=longest, max_image_size=side, return_row_col_info=True
    )
    names = SimpleNamespace(
        fake_image_token="<fake_token_around_image>",
        image_token="<image>",
        global_image_tag="<global-img>",
        image_seq_len=2,
    )
    write = processing_idefics3.Idefics3Processor.replace_image_token
    arrays = {}
    for name, shape in {"wide": (20, 33), "tall": (40, 18), "square": (9, 9)}.items():
        image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
        found = cut([[image]], return_tensors="np", input_data_format="channels_last")
        text = write(names, {"rows": found["rows"], "cols": found["cols"]}, 0)
        arrays |= {
            f"{name}.image": image,
            # Bytes, from -1 to 1.
            f"{name}.crops": np.round(found["pixel_values"][0] * 127.5 + 127.5),
            f"{name}.text": np.frombuffer(text.encode(), np.uint8),
        }
    return {k: v.astype(np.uint8) for k, v in arrays.items()}


MODELS = {
    "siglip": siglip,
    "llava": llava,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "gemma3_images": gemma3_images,
    "tiles": tiles,
}


def main():
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    HERE.mkdir(exist_ok=True)
    for name in sys.argv[1:] or MODELS:
        torch.manual_seed(0)
        np.savez_compressed(HERE / f"{name}.npz", **MODELS[name]())


if __name__ == "__main__":
    main()
