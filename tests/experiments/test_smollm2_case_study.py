"""SmolLM2 case study: it runs, its prompts are aligned, and steering steers."""

import importlib
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax.data import Tokenizer
from mijax.data.tasks import _capitals
from mijax.experiment import Run, execute, load
from mijax.models import GPT2Spec


def part(name):
    package = load("smollm2-case-study").function.__module__
    return importlib.import_module(f"{package}.{name}")


@pytest.fixture(scope="module")
def tokenizer():
    words = "war siege reign Mary John Anna Tom Paul park book good great bad awful"
    capitals = [word for pair in _capitals.CAPITALS[:12] for word in pair]
    return Tokenizer.from_pieces([f" {word}" for word in [*words.split(), *capitals]])


@pytest.fixture(scope="module")
def loaded(tokenizer):
    """A tiny random GPT-2."""
    sizes = {"layers": 2, "embed": 16, "heads": 2, "mlp": 32, "context": 128}
    spec = GPT2Spec(vocab=tokenizer.vocab_size, **sizes)
    model = mijax.models.init(spec, jax.random.key(0))
    return SimpleNamespace(model=model, tokenizer=tokenizer)


def test_tiny_runs_and_writes_everything(tmp_path):
    result = execute("smollm2-case-study/tiny", out=tmp_path / "run")
    assert result.passed
    numbers = {number.name: number for number in result.numbers}
    verified = numbers["induction_verified"]
    assert verified.low <= verified.value <= verified.high
    assert numbers["overlap_methods_over_random"].value > 0
    assert "steering_effect" not in numbers
    written = {path.name for path in (tmp_path / "run").iterdir()}
    for name in ("positions", "heads", "lens", "said", "direct", "faithfulness"):
        assert {f"{name}.png", f"{name}.svg"} <= written
    assert "overlap.png" in written


@pytest.mark.parametrize("repeated", ["answer", "run"])
def test_behaviours_have_one_shape_and_places_that_differ(tokenizer, repeated):
    tasks = part("_tasks")
    names = tuple(tasks.LABELS)
    found = tasks.problems(tokenizer, names, (6, 4), 0, repeated=repeated)
    shapes = [
        jax.tree.map(jnp.shape, (t.both.clean.tokens, t.both.answer)) for t in found
    ]
    assert len(set(map(str, shapes))) == 1
    for one in found:
        clean, corrupt = one.both.clean, one.both.corrupt
        differ = np.asarray(clean.tokens != corrupt.tokens)
        places = tasks.slots(one, clean)
        rows = np.arange(10)
        assert differ[rows, places["changed"]].all()
        several = one.name == "induction" and repeated == "run"
        assert (differ[rows, places["before"]] == several).all()
        assert not differ[rows, places["last"]].any()
        train = {tuple(row) for row in np.asarray(one.train.clean.tokens).tolist()}
        for side in (one.test.clean, one.test.corrupt):
            assert not train & {tuple(row) for row in np.asarray(side.tokens).tolist()}
    years = found[1].both
    for text, right, wrong in zip(
        years.clean.texts, years.answer, years.wrong, strict=True
    ):
        tens = int(re.search(r"\d\d(\d)\d to the year \d\d$", text)[1])
        digits = [
            tokenizer.decode([i for i in ids.tolist() if i >= 0])
            for ids in (right, wrong)
        ]
        assert digits == [
            "".join(map(str, range(tens + 1, 10))),
            "".join(map(str, range(tens))),
        ]
    with pytest.raises(mijax.MijaxError, match="'induktion'"):
        tasks.problems(tokenizer, ("induktion",), (2, 2), 0, repeated="answer")


def test_steering_is_an_addition(loaded, tokenizer, tmp_path):
    steering, report = part("_steering"), part("_steering_report")
    found = steering.direction(loaded, 1)
    random = steering.alike(found.step, 2, 0)
    for one in random:
        np.testing.assert_allclose(*map(jnp.linalg.norm, (one, found.step)), rtol=1e-5)
    options = {"layer": 1, "strengths": (-2.0, 0.0, 2.0), "written": (-2.0, 0.0, 2.0)}
    results = [
        steering.steer(loaded, one, **options, n=1) for one in (found.step, *random)
    ]
    prompts = steering.neutral(tokenizer)

    def said(strength):
        edit = mijax.Add(found.step, jnp.float32(strength))
        logits = mijax.run(loaded.model, prompts.tokens, edit.at("resid_post", layer=1))
        return logits[np.arange(12), prompts.last]

    logits, plain = said(2.0), said(0.0)
    good, bad = (
        jax.nn.logsumexp(logits[:, steering.words(tokenizer, words)], axis=-1)
        for words in (("good", "great"), ("bad", "awful"))
    )
    np.testing.assert_allclose(results[0].odds[:, 2], good - bad, atol=1e-4)
    # Greedy; surprise is that of the unedited model.
    new = results[0].tokens[2.0][:, 0]
    assert (new == logits.argmax(-1)).all()
    expected = -jax.nn.log_softmax(plain)[np.arange(12), new]
    np.testing.assert_allclose(results[0].surprise[2.0], expected, atol=1e-4)
    run = Run(tmp_path)
    report.report(
        loaded, results[0], results[1:], strengths=(-2.0, 0.0, 2.0), step=2.0, run=run
    )
    numbers = {number.name: number.value for number in run.notes.numbers}
    odds = results[0].odds
    assert numbers["steering_effect"] == pytest.approx(
        (odds[:, 2] - odds[:, 0]).mean(), rel=1e-4
    )
    assert numbers["tone_random"] == 0
    tokens = np.array([tokenizer.encode(text) for text in (" good great", " bad good")])
    assert report.tone(tokenizer, tokens).tolist() == [2, 0]


def test_refuses():
    with pytest.raises(mijax.MijaxError, match=r"--share 0\.3"):
        execute("smollm2-case-study/tiny", {"share": 0.3})
    with pytest.raises(mijax.MijaxError, match="--written lacks"):
        execute("smollm2-case-study/tiny", {"written": [2.0]})
    with pytest.raises(mijax.MijaxError, match="two at least"):
        execute("smollm2-case-study/tiny", {"methods": ["GIM"]})
    with pytest.raises(mijax.MijaxError, match=r"'GMI'.*'GIM'"):
        execute("smollm2-case-study/tiny", {"methods": ["GMI"]})
    few = Tokenizer.from_pieces([" war", "17", "32"])
    tasks = part("_tasks")
    with pytest.raises(mijax.MijaxError, match="each a token"):
        tasks.problems(few, ("greater_than",), (2, 2), 0, repeated="answer")
    with pytest.raises(mijax.MijaxError, match="one token"):
        part("_steering").words(few, ("good",))


def test_a_nan_is_the_largest_error(tmp_path):
    lenses = part("_lenses")
    fine, bad = np.zeros((2, 3)), np.full((2, 3), np.nan)
    views = {
        name: SimpleNamespace(
            difference=x,
            model=np.zeros(2),
            direct=SimpleNamespace(total=lambda x=x: x[:, 0]),
        )
        for name, x in (("a", fine), ("b", bad))
    }
    run = Run(tmp_path)
    with pytest.raises(AttributeError):  # These views have nothing to draw.
        lenses.report(views, 3, run)
    found = {number.name: number.value for number in run.notes.numbers}
    assert np.isnan([found["lens_error"], found["direct_error"]]).all()
