"""Images cut into tiles against transformers, and configs of SmolVLM."""

import jax.numpy as jnp
import numpy as np
import pytest
from family_weights import VISION_LANGUAGE, write

from mijax import models
from mijax._errors import LoadError, ShapeError
from mijax.data import ImagePrompts, Tokenizer
from mijax.models import TiledImage

READER = TiledImage(longest=32, tile=16, token=256, count=2)


def image(name):
    with np.load(VISION_LANGUAGE / "tiles.npz") as arrays:
        return [arrays[f"{name}.{part}"] for part in ("image", "crops", "text")]


@pytest.mark.parametrize(("name", "tiles"), [("wide", 5), ("tall", 3), ("square", 5)])
def test_tiles_and_text_are_those_of_transformers(name, tiles):
    pixels, crops, text = image(name)
    found = READER(pixels)
    assert found.text == text.tobytes().decode()
    assert len(found.crops) == tiles
    ours = 127.5 * np.asarray(found.crops) + 127.5
    # Pillow rounds its weights too, which tips a value that is nearly half way.
    assert np.abs(ours - crops).max() < 1.001
    assert (np.abs(ours - crops) > 0.001).mean() < 0.005


def test_an_image_of_one_tile_is_read_once():
    found = TiledImage(longest=16, tile=16, token=256, count=2)(image("square")[0])
    assert found.crops.shape == (1, 3, 16, 16)
    assert found.text.count("<image>") == 2
    assert "row" not in found.text


def test_prompts_of_tiles_have_a_span_over_all_of_them():
    tokenizer = Tokenizer.from_pieces([" cat"])
    # Ids start after those of the bytes and the piece.
    tokenizer.backend.add_special_tokens(["<image>"])
    reader = TiledImage(longest=32, tile=16, token=257, count=2)
    prompts = ImagePrompts.from_texts(
        tokenizer,
        ["<image> cat", "<image><image> cat"],
        [image("wide")[0], [image("tall")[0]] * 2],
        reader=reader,
        spans={"animal": " cat"},
    )
    assert prompts.counts.tolist() == [5, 6]
    start, stop = (end.tolist() for end in prompts.find("image_0"))
    tokens = np.asarray(prompts.prompts.tokens)
    for row, first, end, count in zip(tokens, start, stop, (10, 6), strict=True):
        assert row[first] == row[end - 1] == 257
        assert (row[first:end] == 257).sum() == count
    assert (tokens[1, int(prompts.position("animal")[1])]) == 256


# Keys of the published files that say nothing about what is computed.
EXTRA = {
    "top": {"use_reentrant_checkpoints": False, "image_seq_len": 64, "vocab_size": 64},
    "vision_config": {
        "max_image_size": {"longest_edge": 24},
        "size": {"longest_edge": 72},
        "tie_word_embeddings": False,
        "use_base_siglip": True,
    },
    "text_config": {
        "is_llama_config": True,
        "neftune_noise_alpha": 0.0,
        "perceiver_config": {"attention_dropout": 0.0},
        "pixel_shuffle_factor": 4,
        "qk_layer_norms": False,
        "rope_interleaved": False,
        "use_resampler": False,
    },
}


def test_keys_of_published_files_are_understood(tmp_path):
    def change(config, tensors):
        for part, keys in EXTRA.items():
            (config if part == "top" else config[part]).update(keys)

    found = models.load(write(tmp_path, "idefics3", change))
    assert found.input == TiledImage(72, 24, 62, 9)


BROKEN = {
    "qk_layer_norms": "'qk_layer_norms' is True, only False is supported",
    "use_resampler": "'use_resampler' is True, only False is supported",
    "scale_factor": "6 patches along a side do not split into squares of .*4",
    "missing": "missing every tensor of the part 'projector'",
}


@pytest.mark.parametrize("change", BROKEN)
def test_a_folder_that_does_not_fit_is_refused(change, tmp_path):
    def broken(config, tensors):
        if change == "missing":
            del tensors["model.connector.modality_projection.proj.weight"]
        elif change == "scale_factor":
            config[change] = 4
        else:
            config["text_config"][change] = True

    with pytest.raises(LoadError, match=BROKEN[change]):
        models.load(write(tmp_path, "idefics3", broken))


def test_other_images_than_squares_are_refused(tmp_path):
    shuffle = models.load(write(tmp_path, "idefics3")).model.projector
    with pytest.raises(ShapeError, match="8 patches, but the projector joins squares"):
        shuffle(jnp.ones((8, 16)))
