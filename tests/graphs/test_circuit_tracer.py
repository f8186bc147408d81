"""Graphs equal those of circuit-tracer 0.5.0 on the same weights."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from coder_weights import EMBED, LAYERS, PROMPT, across_layers, transcoders

from mijax import dictionaries as d
from mijax import graphs, models
from mijax.graphs import _attribute

GOLDEN = Path(__file__).parent.parent / "golden"
TARGETS = [17, 230]
KINDS = ("per_layer", "some", "skip", "across")


def coders(kind):
    if kind != "across":
        return {
            layer: d.Dictionary(
                *(d.ReLU(), d.Transcoder(EMBED, skip="W_skip" in w)),
                d.Weights(
                    *map(jnp.asarray, (w["W_enc"], w["b_enc"], w["W_dec"], w["b_dec"])),
                    skip=jnp.asarray(w["W_skip"]).T if "W_skip" in w else None,
                ),
                *(None, None, jnp.float32(1)),
            )
            for layer, w in enumerate(transcoders(skip=kind == "skip"))
        }
    w = across_layers()
    writes = [
        np.pad(w[f"W_dec_{i}"], ((0, 0), (i, 0), (0, 0))).reshape(-1, LAYERS * EMBED)
        for i in range(LAYERS)
    ]
    mixed = lambda a: jnp.asarray(np.stack(list(a), 1).reshape(-1, *a[0].shape[1:]))  # noqa: E731
    return d.Dictionary(
        *(d.ReLU(), d.CrossLayer(LAYERS, EMBED)),
        d.Weights(
            *(mixed(w["W_enc"]), mixed(w["b_enc"]), mixed(writes)),
            jnp.asarray(w["b_dec"].reshape(-1)),
        ),
        *(None, None, jnp.float32(1)),
    )


@pytest.fixture(scope="module")
def model():
    return models.load(str(GOLDEN / "hf" / "llama")).model


@pytest.mark.parametrize("kind", KINDS)
def test_graphs_are_those_of_circuit_tracer(model, kind, monkeypatch):
    # The reference ranked features again after every 8.
    monkeypatch.setattr(_attribute, "UPDATE", 8)
    with np.load(GOLDEN / "circuit_tracer.npz") as file:
        golden = {
            k.split(".")[1]: v for k, v in file.items() if k.startswith(f"{kind}.")
        }
    both = graphs.Replacement.of(model, coders(kind))
    most = 20 if kind == "some" else None
    found = graphs.attribute(both, PROMPT, targets=TARGETS, features=most)
    n = len(golden["features"])
    places = np.stack([found.layer[:n], found.position[:n], found.index[:n]], 1)
    np.testing.assert_array_equal(places, golden["features"])
    np.testing.assert_allclose(found.edges, golden["edges"], atol=1e-5)
    np.testing.assert_allclose(found.influence(), golden["influence"], atol=1e-5)
    np.testing.assert_allclose(found.quality(), golden["scores"], atol=1e-5)
    pruned = found.prune(0.8, 0.9)
    assert pruned.cumulative is not None
    names = np.array(found.names)
    assert set(pruned.names) == set(names[golden["nodes"]])
    kept = np.unpackbits(golden["kept"], count=len(names) ** 2).reshape(
        2 * [len(names)]
    )
    rows = np.ix_(golden["nodes"], golden["nodes"])
    np.testing.assert_array_equal(pruned.edges != 0, kept.astype(bool)[rows])
    ranked = golden["cumulative"][golden["nodes"]]
    np.testing.assert_allclose(pruned.cumulative, ranked, atol=1e-5)
