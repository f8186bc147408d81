"""Sparse nonnegative sums: against TransformerLens, and planted ones."""

from pathlib import Path

import numpy as np
import pytest

from mijax import lens
from mijax._errors import NotFiniteError, ShapeError

GOLDEN = Path(__file__).parent.parent / "golden" / "jacobian_lens" / "gpt2.npz"


@pytest.mark.parametrize(
    ("name", "pursuit"),
    [("exact", lens.ExactPursuit()), ("gradient", lens.GradientPursuit())],
)
def test_decomposition_is_that_of_transformer_lens(name, pursuit):
    with np.load(GOLDEN) as file:
        golden = dict(file)
    found = lens.decompose(golden["x"], golden["atoms"], k=12, pursuit=pursuit)
    for part in ("support", "selected"):
        np.testing.assert_array_equal(getattr(found, part), golden[f"{name}_{part}"])
    for part in ("coordinates", "component"):
        np.testing.assert_allclose(
            getattr(found, part), golden[f"{name}_{part}"], atol=2e-5
        )
    captured = (golden[f"{name}_component"] ** 2).sum(-1)
    whole = (golden["x"] ** 2).sum(-1)
    np.testing.assert_allclose(found.fraction, captured / whole, rtol=1e-4)
    np.testing.assert_allclose(found.pooled, captured.sum() / whole.sum(), rtol=1e-4)
    np.testing.assert_allclose(found.median, np.median(captured / whole), rtol=1e-4)


def test_a_selected_atom_may_have_no_coefficient():
    """The first atom taken gives way to two others: its span still counts."""
    rows = [[-0.4, 1.0, 0.4], [-0.6, 0.7, -1.5], [0.6, -0.6, 0.6], [0.4, -0.8, 0.5]]
    atoms, x = np.array(rows), np.array([0.3, -0.6, 2.0])
    found = lens.decompose(x, atoms, k=3)
    assert found.selected.tolist() == [2, 0, 3]
    assert found.support.tolist() == [0, 3, -1]
    coordinates, *_ = np.linalg.lstsq(atoms[[0, 3]].T, x, rcond=None)
    np.testing.assert_allclose(found.coordinates, [*coordinates, 0], atol=1e-6)
    np.testing.assert_allclose(
        found.reconstruction, coordinates @ atoms[[0, 3]], atol=1e-6
    )
    # Three atoms span everything, two of them do not.
    np.testing.assert_allclose(found.component, x, atol=1e-6)
    assert np.abs(found.reconstruction - x).max() > 0.05


def test_planted_sums_are_found_and_random_ones_fill_less():
    random = np.random.default_rng(1)
    atoms = random.standard_normal((200, 64))
    planted = np.array([5, 17, 120])
    x = np.array([3.0, 2.0, 1.5]) @ atoms[planted]
    found = lens.decompose(x, atoms, k=10)
    assert sorted(found.support[:3].tolist()) == planted.tolist()
    assert (found.support[3:] == -1).all()
    np.testing.assert_allclose(found.reconstruction, x, atol=1e-4)
    np.testing.assert_allclose(found.fraction, 1, atol=1e-6)
    space = lens.occupancy(x, atoms, k=10, draws=4)
    assert space.atoms == 3
    assert space.captured[2] > 0.999 > space.random[2] + 0.3


def test_nothing_positive_is_nothing():
    found = lens.decompose([-1.0, 0.0], np.eye(2), k=2)
    assert (found.selected == -1).all()
    assert not found.reconstruction.any()
    assert found.fraction == 0


def test_refuses():
    with pytest.raises(ShapeError, match="of the same width"):
        lens.decompose(np.ones(3), np.ones((4, 2)))
    with pytest.raises(ShapeError, match="must be 1 to 2"):
        lens.decompose(np.ones(2), np.eye(2), k=3)
    with pytest.raises(ShapeError, match="Atom 1 has norm 0"):
        lens.decompose(np.ones(2), [[1.0, 0.0], [0.0, 0.0]], k=1)
    with pytest.raises(NotFiniteError, match="finite"):
        lens.decompose([np.nan, 0.0], np.eye(2), k=1)
    with pytest.raises(ShapeError, match="one vector"):
        lens.occupancy(np.ones((2, 2)), np.eye(2), k=1)
