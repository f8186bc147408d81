"""The detection protocol: numbers of scikit-learn, planted concepts, files."""

import dataclasses
import json
from pathlib import Path

import cases
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax import steering
from mijax.steering import Concept, read_concepts
from mijax.steering._detect import measure

with np.load(Path(__file__).parents[1] / "golden/steering/detection.npz") as _file:
    GOLDEN = dict(_file)
NAMES = np.array(["negative", "positive"])


@pytest.mark.parametrize("row", range(4))
def test_areas_and_thresholds_are_those_of_sklearn(row):
    scores, labels = GOLDEN["scores"][row], NAMES[GOLDEN["labels"][row]]
    found = measure(scores, labels.tolist())
    np.testing.assert_allclose(found.auroc, GOLDEN["auroc"][row], rtol=1e-6)
    np.testing.assert_allclose(found.threshold, GOLDEN["threshold"][row], rtol=1e-12)
    assert np.isnan(found.strict)
    # The scale of the scores does not matter.
    assert measure(7 * scores - 3, labels.tolist()).auroc == found.auroc


def test_hard_negatives_enter_the_strict_area_only():
    scores = np.array([0.9, 0.7, 0.2, 0.1, 0.8, 0.3])
    labels = [*["positive"] * 2, *["negative"] * 2, *["hard negative"] * 2]
    found = measure(scores, labels)
    assert found.auroc == 1
    # Of 8 pairs the one of 0.7 and 0.8 is the wrong way round.
    assert found.strict == 7 / 8
    np.testing.assert_allclose(found.threshold, (0.7 - 0.1) / 0.8)
    assert found.hard_accuracy == 0.5


DETECTORS = {
    "DiffMean": steering.DiffMean(),
    "probe": steering.Probe(),
    "PCA": steering.PositivePCA(),
    "LAT": steering.LAT(),
    "random": steering.RandomDirection(),
}


@pytest.fixture(scope="module")
def model():
    """Four tokens of each concept share a direction; all others vary along one more."""
    model = cases.model("gpt2")
    directions = np.linalg.qr(np.random.default_rng(0).normal(size=(32, 5)))[0].T
    embedding = np.array(model.embedding.weight)
    for number in range(4):
        embedding[4 * number : 4 * number + 4] += 6 * directions[number]
    sign = np.where(np.arange(16, 64) % 2, 1, -1)
    embedding[16:] += 9 * sign[:, None] * directions[4]
    return dataclasses.replace(
        model, embedding=mijax.nn.Embedding(jnp.asarray(embedding))
    )


def concept(number):
    """Make a concept: its texts have one of its tokens, and others have none."""
    rng = np.random.default_rng(number)

    def texts(count, kind):
        sizes = rng.integers(4, 8, count)
        rows = [list(map(int, rng.integers(16, 64, size))) for size in sizes]
        for row in rows:
            if kind == "positive":
                at = int(rng.integers(1, len(row)))
                row[at] = 4 * number + int(rng.integers(0, 4))
        return rows

    labels = [*["positive"] * 12, *["negative"] * 12, *["hard negative"] * 4]
    return Concept(
        f"concept {number}",
        tuple(texts(40, "positive")),
        tuple(texts(40, "negative")),
        tuple(row for label in labels for row in texts(1, label)),
        tuple(labels),
    )


@pytest.fixture(scope="module")
def found(model):
    concepts = [concept(i) for i in range(4)]
    return steering.detect(model, concepts, DETECTORS, layer=0, batch=40)


def test_planted_concepts_are_detected_in_the_published_order(found):
    mean = {name: row["auroc"] for name, row in found.means().items()}
    assert min(mean["DiffMean"], mean["probe"]) > 0.8
    assert min(mean["DiffMean"], mean["probe"]) > max(mean["PCA"], mean["LAT"]) + 0.1
    assert abs(mean["random"] - 0.5) < 0.25
    assert found.auroc.shape == (4, 5)
    assert found.concepts[3] == "concept 3"
    assert (found.hard_accuracy[:, 1] >= 0).all()
    assert np.isfinite(found.strict).all()


def test_a_cell_is_its_formula(model, found):
    one = concept(2)

    def tokens(texts):
        site = mijax.Site("resid_post", layer=0)
        return [np.float64(mijax.capture(model, jnp.array(t), site))[1:] for t in texts]

    positive, negative = (
        np.concatenate(tokens(t)) for t in (one.positive, one.negative)
    )
    vector = positive.mean(0) - negative.mean(0)
    scores = np.array([(rows @ vector).max() for rows in tokens(one.test)])
    expected = [scores[:12, None] > scores[None, 12:24]]
    np.testing.assert_allclose(found.auroc[2, 0], np.mean(expected), rtol=1e-6)


def test_a_common_offset_changes_no_direction():
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(size=(50, 6)) + 1, rng.normal(size=(70, 6))
    for name, detector in DETECTORS.items():
        one = detector.vector(positive, negative, seed=3)
        other = detector.vector(positive + 5, negative + 5, seed=3)
        np.testing.assert_allclose(one, other, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(np.linalg.norm(one), 1, rtol=1e-5)


def test_pca_is_the_axis_of_largest_variance():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4000, 3)) * [1, 5, 1] + 7
    found = steering.PositivePCA().vector(rows, rows[:2], seed=0)
    np.testing.assert_allclose(found, [0, 1, 0], atol=0.05)


ROW = {"concept": "rain", "split": "train", "label": "positive", "text": "It pours."}
ROWS = [
    ROW,
    ROW | {"label": "negative", "text": "It shines."},
    ROW | {"split": "test"},
    ROW | {"split": "test", "label": "negative"},
    ROW | {"split": "test", "label": "hard negative", "text": "A shower of sparks."},
]


def written(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def test_a_file_of_concepts(tmp_path):
    other = [row | {"concept": "sun"} for row in ROWS[:4]]
    rain, sun = read_concepts(written(tmp_path / "a.jsonl", [*ROWS, *other]))
    assert (rain.name, sun.name) == ("rain", "sun")
    assert (rain.positive, rain.negative) == (("It pours.",), ("It shines.",))
    assert rain.labels == ("positive", "negative", "hard negative")
    assert len(sun.test) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*ROWS, {"concept": "rain"}], "line 6: expected a JSON object"),
        ([ROW | {"label": "hard negative"}], "hard negatives in test only"),
        ([ROW | {"split": "dev"}], "split 'dev'"),
        ([ROW | {"text": 3}], "object of strings"),
        (ROWS[1:], "needs positive and negative"),
        (ROWS[:3], "needs positive and negative"),
        ([], "has no concepts"),
    ],
)
def test_bad_files(tmp_path, rows, message):
    with pytest.raises(mijax.MijaxError, match=message):
        read_concepts(written(tmp_path / "a.jsonl", rows))


def test_bad_input():
    with pytest.raises(mijax.MijaxError, match="at least one concept"):
        steering.detect(cases.model("gpt2"), [], DETECTORS, layer=0)
    short = Concept("a", ([5, 6],), ([7],), ([5, 6], [7, 8]), ("positive", "negative"))
    with pytest.raises(mijax.MijaxError, match="Text 0 has 1 tokens"):
        steering.detect(cases.model("gpt2"), [short], DETECTORS, layer=0)
    with pytest.raises(mijax.MijaxError, match="does not exist"):
        read_concepts("nowhere.jsonl")
