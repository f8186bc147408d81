"""How exact patching cuts its work: every edge once, and little filled up in vain."""

import jax.numpy as jnp
import numpy as np
import pytest

from mijax.circuits import Graph
from mijax.circuits.methods._exact import Known, _jobs
from mijax.core._chunk import Base
from mijax.core._sites import empty

GPT2_SMALL = Graph.decoder(12, heads=12)


def cut(first, memory):
    prompts, zeros = len(first), jnp.zeros
    kv = zeros((12, prompts, 15, 12, 1))
    x, last = zeros((12, prompts, 15, 768)), zeros((prompts, 15, 768))
    reads = zeros((prompts, 1), jnp.int32)
    base = Base(x, {"k": kv, "v": kv}, last, x, reads, zeros(prompts), empty())
    known = Known(base, zeros((prompts, 157, 15, 768)), jnp.array(first))
    return _jobs(GPT2_SMALL, known, memory)


@pytest.mark.parametrize("memory", [1, 2**24, 2**30])
@pytest.mark.parametrize("first", [[0], [0, 9, 14]])
def test_every_edge_is_in_one_job(first, memory):
    found = np.zeros((len(first), *GPT2_SMALL.edges.shape))
    for job in cut(first, memory):
        for prompt, sender in zip(
            job.prompt[: job.count], job.sender[: job.count], strict=True
        ):
            at = job.layer * GPT2_SMALL.ports.readers
            where = slice(at + 36, at + 37) if job.stage else slice(at, at + 36)
            found[prompt, sender, where] += 1
    # Edges into the logits need no layers, so no jobs.
    expected = GPT2_SMALL.edges.copy()
    expected[:, -1] = False
    assert (found == expected).all()


def test_few_lanes_are_filled_up():
    needed = filled = 0
    for job in cut([0], 2**30):
        depth = (12 - job.layer) * (1 if job.stage else 36)
        needed, filled = needed + depth * job.count, filled + depth * len(job.prompt)
    assert filled < 1.25 * needed
