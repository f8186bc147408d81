"""Every architecture answers to its knob, whatever the scale of the activations."""

import functools
import itertools

import numpy as np
import pytest

from mijax import dictionaries as d
from mijax.data import Examples, statistics

EMBED, FEATURES, LATENTS = 16, 24, 32
# Knobs from dense to sparse, and how many latents are active then, if that is given.
KNOBS = {
    "relu": (d.ReLU, (0.3, 1.0, 3.0)),
    "tanh": (lambda s: d.ReLU(s, penalty="tanh"), (0.1, 1.0, 3.0)),
    "sqrt": (lambda s: d.ReLU(s, penalty="sqrt"), (0.1, 0.4, 1.0)),
    "gated": (d.Gated, (0.3, 1.0, 3.0)),
    "jump_relu": (d.JumpReLU, (0.03, 0.3, 3.0)),
    "target": (lambda t: d.JumpReLU(target=t), (8.0, 4.0, 2.0)),
    "topk": (lambda k: d.TopK(k, most=8), (8, 4, 2)),
    "batch_topk": (d.BatchTopK, (8.0, 4.0, 2.0)),
    "matryoshka": (lambda k: d.Matryoshka((0.25, 0.75), k=k), (8.0, 4.0, 2.0)),
}
COUNTED = ("target", "topk", "batch_topk", "matryoshka")


@functools.cache
def planted():
    """Draw rows of planted features, 2 of which are active on average."""
    random = np.random.default_rng(0)
    true = random.normal(size=(FEATURES, EMBED))
    true /= np.linalg.norm(true, axis=1, keepdims=True)
    active = random.random((2048, FEATURES)) < 2 / FEATURES
    code = active * random.uniform(1, 2, active.shape)
    return (code @ true + random.normal(size=EMBED)).astype(np.float32)


@functools.cache
def active(name, size):
    """Train one dictionary for each knob, return active latents per example."""
    make, knobs = KNOBS[name]
    x = size * planted()
    source = Examples(x, batch=128)
    typical = statistics(source, 1024)
    trainings = [
        d.Training(
            *(make(knob), d.SAE(EMBED)),
            latents=LATENTS,
            steps=300,
            learning_rate=1e-2,
            decay=100,
            centre=typical.mean,
            scale=typical.scale,
        )
        for knob in knobs
    ]
    found = d.train(trainings, source, report=300)
    return [float((sae.encode(x) > 0).sum(1).mean()) for sae in found]


@pytest.mark.parametrize("size", [0.1, 1.0, 100.0])
@pytest.mark.parametrize("name", KNOBS)
def test_a_stronger_penalty_leaves_fewer_active_latents(name, size):
    found = active(name, size)
    for dense, sparse in itertools.pairwise(found):
        assert sparse < 0.8 * dense, found
    assert found[-1] > 0.2, found
    if name in COUNTED:
        np.testing.assert_allclose(found, KNOBS[name][1], rtol=0.15)
    # Scaled activations are the same.
    np.testing.assert_allclose(found, active(name, 1.0), rtol=0.1)
