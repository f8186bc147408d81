"""Probes on latents: it runs, and reads texts and activations as they are."""

import importlib
import zipfile

import jax
import numpy as np
import pytest

import mijax
from mijax import dictionaries as d
from mijax.data import Tokenizer
from mijax.experiment import Run, execute, load


def part(name):
    package = load("sae-probes").function.__module__
    return importlib.import_module(f"{package}{name}")


def test_tiny_runs_and_writes_everything(tmp_path):
    result = execute("sae-probes/tiny", out=tmp_path / "run")
    assert result.passed
    numbers = {number.name: number.value for number in result.numbers}
    assert 4 < numbers["l0"] < 16
    rows = result.tables[0].rows
    # Most tokens are of the kind of the label: the last one tells much of it.
    assert len(rows) == 2
    assert min(row[1] for row in rows) > 0.6
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"last-token.png", "all-tokens.svg"} <= written


def test_archives_are_read_and_refused(tmp_path):
    corpora = part("._texts").corpora
    names = {"female": ("Ada", "Eva", "Mia"), "male": ("Ben", "Tom", "Max")}
    with zipfile.ZipFile(tmp_path / "names.zip", "w") as archive:
        for side, some in names.items():
            archive.writestr(f"names/{side}.txt", "\n".join((*some, some[0])))
    pieces = ["My", " first", " name", " is"]
    pieces += [f" {name}" for side in names.values() for name in side]
    tokenizer = Tokenizer.from_pieces(pieces)
    (texts,), digest = corpora(str(tmp_path), tokenizer, 6, longest=9, seed=0)
    assert texts.name == "first name"
    assert digest.startswith("sha256:")
    last = texts.tokens[np.arange(6), texts.lengths - 1]
    males = {tokenizer.token(f" {name}") for name in names["male"]}
    assert [int(token) in males for token in last] == texts.labels.tolist()
    assert len(set(last.tolist())) == 6
    with pytest.raises(mijax.MijaxError, match="ask for fewer"):
        corpora(str(tmp_path), tokenizer, 8, longest=9, seed=0)
    with pytest.raises(mijax.MijaxError, match="--data"):
        corpora(str(tmp_path / "none"), tokenizer, 6, longest=9, seed=0)
    (tmp_path / "names.zip").write_bytes(b"no archive")
    with pytest.raises(mijax.MijaxError, match="not the archive"):
        corpora(str(tmp_path), tokenizer, 6, longest=9, seed=0)
    with pytest.raises(mijax.MijaxError, match="--data"):
        execute("sae-probes", out=tmp_path / "run")


def test_activations_and_latents_are_those_of_each_text(tmp_path):
    reading = part("._reading")
    texts = part("._texts").generated(60, 40, 0)[0]
    model = mijax.testing.tiny_gpt2(jax.random.key(0))
    site = mijax.Site("resid_post", layer=1)
    acts = reading.read(model, texts, site, tmp_path / "acts.npy")
    sae = d.untrained(d.TopK(4), d.SAE(32), latents=64, key=jax.random.key(1))
    latents = reading.encode(sae, acts)
    for i in (texts.lengths.argmin(), texts.lengths.argmax()):
        x = mijax.capture(model, texts.tokens[i, : texts.lengths[i]], site)[1:]
        # Kept in half precision.
        half = {"rtol": 2**-11, "atol": 1e-5}
        np.testing.assert_allclose(acts.x[i][acts.mask[i]], x, **half)
        np.testing.assert_allclose(acts.last[i], x[-1], **half)
        each = sae.encode(acts.x[i][acts.mask[i]].astype(np.float32))
        np.testing.assert_allclose(latents.last[i], each[-1], atol=1e-5)
        np.testing.assert_allclose(latents.largest[i], each.max(0), atol=1e-5)


def test_latents_are_chosen_where_probes_are_fitted():
    quiver = part("._quiver")
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    latents = rng.random((200, 12)).astype(np.float32)
    parts = quiver.split(80, 40)
    latents[:80, 3] += 2 * labels[:80]
    latents[80:, 5] += 2 * labels[80:]
    found = quiver.sparse(latents, labels, parts, (1,))["1 latents"]
    assert max(abs(found.test - 0.5), abs(found.chosen_by - 0.5)) < 0.2
    areas = {"a": quiver.Area(0.8, 0.9), "b": quiver.Area(0.9, 0.6)}
    assert quiver.best(areas) == ("b", areas["b"])


def test_an_area_that_is_no_number_is_no_loss(tmp_path):
    area, found = part("._quiver").Area, part("._quiver").Found
    fine, bad = {"a": area(0.8, 0.9)}, {"b": area(np.nan, np.nan)}
    areas = {
        "one": found(fine, fine, {"b": area(0.7, 0.7)} | bad, fine),
        "two": found(fine, fine, fine, fine),
    }
    run = Run(tmp_path)
    part("").report(areas, run)
    numbers = {number.name: number.value for number in run.notes.numbers}
    assert np.isnan(numbers["wins"])
    assert numbers["pooled_wins"] == 0


def test_files_are_named_by_what_they_are_of():
    generated = part("._texts").generated
    sets = [texts for seed in (0, 1) for texts in generated(60, 40, seed)]
    other = sets[0]._replace(name="a/B c")
    assert "/" not in other.key
    assert len({texts.key for texts in [*sets, other]}) == 5
    assert sets[0].key == generated(60, 40, 0)[0].key
    one, two = (
        d.untrained(d.TopK(4), d.SAE(32), latents=64, key=jax.random.key(seed))
        for seed in (0, 1)
    )
    assert part("").of_arrays(one) == part("").of_arrays(one) != part("").of_arrays(two)


def test_other_texts_are_not_served_the_activations_of_the_first(tmp_path, monkeypatch):
    plan = load("sae-probes/tiny")
    script = importlib.import_module(plan.function.__module__)
    draw = script.generated

    def stop(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "report", stop)
    with pytest.raises(KeyboardInterrupt):
        execute(plan, out=tmp_path / "run")
    monkeypatch.undo()
    other = lambda vocab, size, seed: draw(vocab, size, 7)  # noqa: E731
    monkeypatch.setattr(script, "generated", other)
    resumed = execute(plan, out=tmp_path / "run")
    fresh = execute(plan, out=tmp_path / "fresh")
    assert resumed.numbers == fresh.numbers
