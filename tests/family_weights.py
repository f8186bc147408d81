"""Files of tiny models; NumPy makes their weights from their names."""

import json
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

GOLDEN = Path(__file__).parent / "golden" / "families"
ENCODERS = GOLDEN.parent / "encoders"
VISION_LANGUAGE = GOLDEN.parent / "vision_language"
ENCODER_DECODERS = GOLDEN.parent / "encoder_decoders"


def weights(shapes):
    """Return an array for each name; none is 0 or 1, so that none can be forgotten."""
    return {name: one(name, tuple(shape)) for name, shape in shapes.items()}


def one(name, shape):
    if name.endswith(("_blocks", "_scales")):
        # Four bits and exponents of the weights of experts; 127 is an exponent of 0.
        low, high = (0, 256) if name.endswith("_blocks") else (122, 126)
        seed = zlib.crc32(name.encode())
        return np.random.default_rng(seed).integers(low, high, shape, np.uint8)
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("bias"):
        value = 0.2 * noise
    elif name.endswith("A_log"):
        # Decays that leave something of a state after several tokens.
        value = 0.5 * noise - 1
    elif len(shape) == 1:
        value = 1 + 0.3 * noise
    elif any(part in name for part in ("embed", "wte", "wpe")):
        value = 0.5 * noise
    else:
        value = 0.3 * noise
    return value.astype(np.float32)


def recording():
    """Return 0.7 s of audio at 16 kHz: a pause, a tone that rises, noise."""
    time = np.arange(11200) / 16000
    tone = 0.4 * np.sin(2 * np.pi * (200 + 2000 * time) * time)
    noise = 0.02 * np.random.default_rng(0).standard_normal(len(time))
    return np.where(time < 0.1, 0, tone + noise).astype(np.float32)


def golden(name):
    """Read a golden of a decoder, an encoder, or a model of two towers."""
    folders = (GOLDEN, ENCODERS, ENCODER_DECODERS, VISION_LANGUAGE)
    files = (at / f"{name}.npz" for at in folders)
    return np.load(next(file for file in files if file.exists()))


def text(array):
    return json.loads(array.tobytes())


def write(folder, name, change=None):
    """Writes the folder that transformers saved, with a change of its config."""
    arrays = golden(name)
    config, tensors = text(arrays["config"]), weights(text(arrays["shapes"]))
    (change or (lambda config, tensors: None))(config, tensors)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder
