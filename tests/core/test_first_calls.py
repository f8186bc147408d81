"""First calls compile the programs of their verbs, and no small ones around them."""

import logging
import re

import jax
import jax.numpy as jnp
import pytest
from cases import CLEAN, CORRUPT, model

import mijax

METRIC = mijax.logit_difference(5, 6)


@pytest.fixture
def compiled(caplog):
    """Returns the names of the programs that a call compiles."""

    def of(call):
        jax.clear_caches()
        caplog.clear()
        with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
            jax.block_until_ready(call())
        found = re.findall(r"Finished XLA compilation of jit\((\w+)\)", caplog.text)
        return sorted(found)

    return of


@pytest.mark.parametrize("one", [True, False], ids=["prompt", "batch"])
def test_sweep(compiled, one):
    tokens = [row.tolist() for row in (CORRUPT[:1] if one else CORRUPT)]
    acts = jnp.zeros((3, 3, 7, 32))[:, 0] if one else jnp.zeros((3, 3, 7, 32))
    patch = mijax.Patch(acts).at("resid_pre")
    over = ("layer", "position")
    network = model("gpt2")
    found = compiled(
        lambda: (
            mijax.sweep(
                network, tokens[0] if one else tokens, patch, over=over, metric=METRIC
            ).values
        )
    )
    assert found == ["changed", "run_base", "run_chunk_jit"]


def test_capture_and_run(compiled):
    tokens, network = CLEAN.tolist(), model("gpt2")
    capture = lambda: mijax.capture(network, tokens, mijax.Site("z"))  # noqa: E731
    assert compiled(capture) == ["_capture"]
    assert compiled(lambda: mijax.run(network, tokens)) == ["_run"]


def test_metric_and_recovered(compiled):
    logits = jnp.ones((3, 7, 64)) * jnp.arange(64)
    assert len(compiled(lambda: METRIC(logits))) == 1
    scale = jax.device_put([jnp.ones((3, 4)), jnp.full(3, 2.0), jnp.zeros(3)])
    assert len(compiled(lambda: mijax.recovered(*scale))) == 1
