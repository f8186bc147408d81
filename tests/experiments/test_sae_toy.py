"""Dictionaries find known features, and the table says how well."""

import importlib

import jax.numpy as jnp
import numpy as np
import pytest

from mijax.experiment import Run, execute, load


def part(name):
    package = load("sae-toy").function.__module__
    return importlib.import_module(f"{package}.{name}")


def test_tiny_holds_and_writes_everything(tmp_path):
    result = execute("sae-toy/tiny", {}, out=tmp_path / "run")
    assert result.passed
    (table,) = result.tables
    rows = {row[0]: row for row in table.rows}
    assert list(rows) == ["ReLU", "TopK", "random", "PCA"]
    numbers = {number.name: number.value for number in result.numbers}
    assert numbers["synthetic_random_mmcs"] < 0.7 < numbers["synthetic_least_mmcs"]
    written = {path.name for path in result.folder.iterdir()}
    assert {"mmcs-synthetic.png", "mmcs-synthetic.svg"} <= written


def test_features_of_a_compiled_program():
    config = importlib.import_module(load("sae-toy").function.__module__).Config()
    known = part("_known").compiled("xproportion", config)
    # Four tokens, the beginning of a sequence, five places, and the share of "x"; that
    # a token is "x" is one feature in two directions, which are always there together.
    assert known.features.shape == (11, 14)
    lengths = sorted(np.square(known.features).sum(1).tolist())
    assert lengths == pytest.approx([1.0] * 10 + [2.0], abs=1e-4)
    # What is left of the stream never changes.
    rest = known.x - known.activity @ known.features
    assert float(jnp.ptp(rest, axis=0).max()) < 1e-4
    correlations = part("_scoring").correlations
    np.testing.assert_allclose(correlations(known, known.activity), 1, atol=1e-4)
    # One latent that is there when a feature is not does not find it.
    assert float(correlations(known, 1 - known.activity[:, :1])[0]) < 0


def test_a_nan_is_the_least_score(tmp_path):
    script = importlib.import_module(load("sae-toy").function.__module__)
    row = lambda *score: part("_scoring").Row(*[np.array(score)] * 5)  # noqa: E731
    rows = {"ReLU": row(0.9, 0.8), "TopK": row(0.9, np.nan), "random": row(0.1, 0.2)}
    run = Run(tmp_path)
    script.report({"synthetic": rows}, run)
    found = {number.name: number.value for number in run.notes.numbers}
    assert np.isnan(found["synthetic_least_mmcs"])
