"""Dictionaries on text: what must hold holds, and what was done is kept."""

import importlib
import json
from contextlib import contextmanager
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax import dictionaries as d
from mijax._errors import ConfigError
from mijax.data import Examples, Tokenizer
from mijax.data.activations._batch import Batch
from mijax.experiment import Run, Silent, execute, load
from mijax.models import GPT2Spec
from mijax.train import Step, fit


def part(name=""):
    package = load("sae-smollm2").function.__module__
    return importlib.import_module(f"{package}{name}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random GPT-2 that reads bytes."""
    path = tmp_path_factory.mktemp("sae") / "model"
    spec = GPT2Spec(layers=2, embed=16, heads=2, mlp=32, vocab=257, context=32)
    shapes = jax.eval_shape(lambda: mijax.models.init(spec, jax.random.key(0)))
    rng = np.random.default_rng(0)
    draw = lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype)  # noqa: E731
    model = jax.tree.map(draw, shapes)
    tokenizer = Tokenizer.from_pieces([" the"])
    mijax.models.save(model, spec, path, tokenizer=tokenizer)
    return path


class Stopped(Exception):
    """What ends a run in a test."""


class Watching(Silent):
    """Keeps what a stage of training says, and ends it after some updates."""

    def __init__(self, last: int | None = None):
        object.__setattr__(self, "seen", [])
        object.__setattr__(self, "last", last)

    @contextmanager
    def stage(self, name):
        def advance(done, total):
            if name == "train":
                self.seen.append(done)
                if self.last is not None and done >= self.last:
                    raise Stopped

        yield advance


def test_tiny_goes_on_where_it_was_stopped(tmp_path):
    out, first, second = tmp_path / "run", Watching(150), Watching()
    with pytest.raises(Stopped):
        execute("sae-smollm2/tiny", {}, out=out, observer=first)
    scratch = tmp_path / "run.partial" / "scratch"
    assert json.loads((scratch / "rows" / "manifest.json").read_text())["whole"]
    result = execute("sae-smollm2/tiny", {}, out=out, observer=second)
    assert (first.seen[0], second.seen[0], second.seen[-1]) == (0, 100, 300)
    assert result.passed
    numbers = {number.name: number for number in result.numbers}
    l0 = numbers["l0_BatchTopK_128_8"]
    assert l0.low < l0.value < l0.high
    assert 6 < l0.value < 10
    assert numbers["fvu_BatchTopK_128_8"].value < 0.5
    *tables, features = result.tables
    assert [table.columns[1:] for table in tables] == [("trained", "random", "PCA")] * 2
    assert len(features.rows) == 3
    assert "«" in features.rows[0][3]
    written = {path.name for path in out.iterdir()}
    assert {"training.png", "pareto.png", "density.png", "features.html"} <= written
    found = d.load(out / "dictionaries" / "ReLU_128_1")
    assert found.site == mijax.Site("resid_post", layer=0)


def test_gpt2_config_runs_on_a_random_gpt2(folder, tmp_path):
    kinds = ["TopK"]
    options = {"model": str(folder), "architectures": kinds, "latents": [32]}
    result = execute("sae-gpt2-l8/tiny", options, out=tmp_path / "run")
    assert result.passed
    numbers = {number.name: number.value for number in result.numbers}
    plan = load("sae-gpt2-l8/tiny").override(options)
    for choice in part("._training").choices(plan.config):
        nmse, fvu = numbers[f"nmse_{choice.name}"], numbers[f"fvu_{choice.name}"]
        assert 0 < nmse < fvu
        if choice.kind == "TopK":
            assert numbers[f"l0_{choice.name}"] <= 4
    assert sum(name.startswith("nmse_") for name in numbers) == 1


def test_published_table_is_of_what_is_trained():
    plan = load("sae-gpt2-l8")
    names = {f"nmse_{one.name}" for one in part("._training").choices(plan.config)}
    assert set(plan.expected) == names
    assert len(names) == 20
    entry = plan.expected["nmse_Gated_24576_0.768"]
    assert (entry.value, entry.tolerance) == (0.489, 0.0489)


@pytest.mark.parametrize(
    ("name", "embed", "gigabytes"),
    [("sae-smollm2/gpu", 576, 2.0), ("sae-gpt2-l8", 768, 4.25)],
)
def test_large_configs_have_the_sizes_they_say(name, embed, gigabytes):
    """Nothing is allocated: shapes only."""
    config, training = load(name).config, part("._training")
    one = jnp.float32(1)
    like = part("._activations").Sizes(one, jnp.zeros(embed), one)
    given = training.objective(training.choices(config), config, like)
    assert training.footprint(given) / 1e9 == pytest.approx(gigabytes, abs=0.05)
    step = Step(jnp.int32(0), jax.random.key(0))

    def loss(x):
        params, memory = given.start(given.key())
        return given.loss(params, memory, Batch(x), step)[0]

    x = jax.ShapeDtypeStruct((config.batch, embed), jnp.float32)
    assert jax.eval_shape(loss, x).shape == ()
    assert config.steps * config.batch > 3e8


def test_together_is_each_alone():
    key = jax.random.key(0)
    source = Examples(jax.random.normal(key, (64, 8)), batch=16)
    parts = tuple(
        d.Training(one, d.SAE(8), latents=12, steps=3, dead_after=16)
        for one in (d.ReLU(0.1), d.ReLU(0.2, penalty="tanh"))
    )
    together = part("._training").Together(parts, ("one", "other"))
    both = together.dictionaries(fit(together, source, steps=3))
    alone = d.train(parts[1], source)
    chex.assert_trees_all_close(both[1].weights, alone.weights, atol=1e-6)


def test_components_miss_the_small_variances():
    scoring = part("._scoring")
    rows = jax.random.normal(jax.random.key(0), (200, 6)) * jnp.arange(1.0, 7) + 3
    made = scoring.components(2, *scoring.principal(rows))
    assert ((np.asarray(made.encode(rows)) > 0).sum(1) == 2).all()
    variances = np.linalg.eigvalsh(np.cov(np.asarray(rows).T, ddof=0))
    missed = ((np.asarray(made(rows)) - rows) ** 2).sum(1).mean()
    np.testing.assert_allclose(missed, variances[:4].sum(), rtol=1e-4)


def test_text_is_cut_at_a_document(tmp_path):
    (tmp_path / "a.txt").write_text("abcdefgh" * 10)
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "0123456789" * 4}) + "\n")
    (tmp_path / "c.bin").write_text("no text")
    text, tokenizer = part("._text"), Tokenizer.from_pieces([" the"])
    given = {"data": str(tmp_path), "seq": 8, "held_out": 2}
    config = load("sae-smollm2").override(given).config
    loaded = SimpleNamespace(text=tokenizer, tokenizer=tokenizer)
    found = text.read(loaded, config, tmp_path / "tokens")
    assert found.train.ids.size == 80
    assert tokenizer.decode(found.held_out.reshape(-1).tolist()) == "0123456789012345"
    config = load("sae-smollm2").override(given | {"held_out": 20}).config
    with pytest.raises(ConfigError, match="120 tokens of text"):
        text.read(loaded, config, tmp_path / "tokens")


def test_without_text_it_says_what_to_give(tmp_path):
    with pytest.raises(ConfigError, match="--data"):
        execute("sae-smollm2", {}, out=tmp_path / "run")


def test_outliers_are_replaced_and_nothing_else():
    x = np.arange(1.0, 13, dtype=np.float32).reshape(4, 3)
    x[0] *= 1000
    source = Examples(x, batch=4)
    _, batch = source.batch(source.start())
    ordinary = part("._activations").Ordinary(source, jnp.float32(100))
    _, found = ordinary.batch(ordinary.start())
    rows = np.asarray(batch.x)
    far = np.linalg.norm(rows, axis=1) > 100
    assert far.sum() == 1
    np.testing.assert_array_equal(np.asarray(found.x)[~far], rows[~far])
    np.testing.assert_array_equal(np.asarray(found.x)[far][0], rows[~far][0])


def test_a_nan_is_the_least_gain(tmp_path):
    report, choice = part("._report"), part("._training").Choice
    interval = lambda x: SimpleNamespace(mean=x, low=x, high=x, n=1)  # noqa: E731
    rivals = {rival: SimpleNamespace(fvu=interval(0.5)) for rival in report.RIVALS}
    scores = {}
    for latents, fvu in ((1, 0.1), (2, float("nan"))):
        numbers = {"NMSE": 1.0, "CE share, mean": 1.0}
        own = SimpleNamespace(l0=1.0, fvu=interval(fvu), numbers=numbers)
        scores[choice("topk", latents, 1.0)] = {"trained": own} | rivals
    run = Run(tmp_path)
    report.numbers(scores, run)
    found = {number.name: number.value for number in run.notes.numbers}
    assert all(np.isnan(found[f"gain_over_{x}_topk"]) for x in report.RIVALS)
