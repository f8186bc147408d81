"""Random weights of tiny models, which NumPy makes from their names."""

import zlib

import numpy as np


def weights(shapes):
    """Return an array for each name; none is 0 or 1, so that none can be forgotten."""
    return {name: one(name, tuple(shape)) for name, shape in shapes.items()}


def one(name, shape):
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("bias"):
        value = 0.2 * noise
    elif len(shape) == 1:
        value = 1 + 0.3 * noise
    elif any(part in name for part in ("embed", "wte", "wpe")):
        value = 0.5 * noise
    else:
        value = 0.3 * noise
    return value.astype(np.float32)
