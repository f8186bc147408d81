"""Weights of small random transcoders, the same for mijax and for circuit-tracer."""

import numpy as np

LAYERS, EMBED, FEATURES = 3, 32, 16
PROMPT = (5, 120, 33, 271, 60, 9)


def transcoders(*, skip: bool = False) -> list[dict[str, np.ndarray]]:
    """Weights of a transcoder of each layer, named as circuit-tracer names them."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(LAYERS):
        draw = lambda *shape, by=1.0: by * random.normal(size=shape)  # noqa: E731
        one = {
            "W_enc": draw(FEATURES, EMBED, by=0.3),
            "b_enc": draw(FEATURES, by=0.2) - 1.0,
            "W_dec": draw(FEATURES, EMBED, by=0.3),
            "b_dec": draw(EMBED, by=0.1),
        }
        if skip:
            one["W_skip"] = draw(EMBED, EMBED, by=0.1)
        found.append({k: v.astype(np.float32) for k, v in one.items()})
    return found


def across_layers() -> dict[str, np.ndarray]:
    """Weights of a cross-layer transcoder; layer `l` writes to `l` and those after."""
    random = np.random.default_rng(1)
    found = {
        "W_enc": 0.3 * random.normal(size=(LAYERS, FEATURES, EMBED)),
        "b_enc": 0.2 * random.normal(size=(LAYERS, FEATURES)) - 1.0,
        "b_dec": 0.1 * random.normal(size=(LAYERS, EMBED)),
    }
    for layer in range(LAYERS):
        shape = (FEATURES, LAYERS - layer, EMBED)
        found[f"W_dec_{layer}"] = 0.3 * random.normal(size=shape)
    return {name: array.astype(np.float32) for name, array in found.items()}
