"""The induction experiment: training that survives a kill, and the whole analysis."""

import importlib
import json

import jax
import numpy as np
import pytest

from mijax import models
from mijax._errors import ConfigError
from mijax.experiment import Run, execute, load

TINY = {
    "steps": 6,
    "every": 2,
    "batch": 4,
    "context": 16,
    "shortest": 3,
    "longest": 6,
    "embed": 16,
    "heads": 2,
    "head_dim": 8,
    "measured": 4,
}


class Killed(Exception):
    pass


def part(name):
    package = load("induction").function.__module__
    return importlib.import_module(f"{package}.{name}")


def test_training_resumes_bit_for_bit(tmp_path):
    training = part("_training")
    config = training.Training(**TINY)

    def fit(folder, progress):
        return training.fit(
            config, layers=2, seed=3, folder=tmp_path / folder, progress=progress
        )

    def kill(done, total):
        if done == 4:
            raise Killed

    steps = []
    whole = fit("whole", lambda done, total: None)
    with pytest.raises(Killed):
        fit("killed", kill)
    resumed = fit("killed", lambda done, total: steps.append(done))
    assert steps == [4, 6]
    for one, other in zip(*map(jax.tree.leaves, (whole, resumed)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_training_writes_a_model_that_loads(tmp_path):
    out = tmp_path / "train"
    result = execute("induction/train", {"training": TINY}, out=out)
    assert {verdict.verdict for verdict in result.verdicts} <= {"PASS", "FAIL"}
    loaded = models.load(out / "model")
    assert loaded.model.n_layers == 2
    assert (out / "losses.png").is_file()
    record = json.loads((out / "record.json").read_text())
    assert record["weights"] == {"induction-2l": loaded.digest}


def test_one_layer_is_trained_with_and_without_smeared_keys(tmp_path):
    change = {"seeds": 1, "training": {**TINY, "steps": 2}}
    result = execute("induction/smeared", change, out=tmp_path / "run")
    shares = [row[-1] for row in result.tables[0].rows]
    assert shares[0]
    assert not shares[1]
    assert {picture.name for picture in result.pictures} == {"smeared"}


def test_analysis_meets_its_claims(tmp_path):
    result = execute("induction", {"prompts": 8}, out=tmp_path / "run")
    assert result.passed, [v for v in result.verdicts if v.verdict != "PASS"]
    names = {picture.name for picture in result.pictures}
    assert {"attention", "patching", "paths", "composition", "eigenvalues"} <= names


def test_text_of_any_characters_has_tokens():
    tokenizer = models.load("induction-2l").tokenizer
    assert tokenizer.pieces(tokenizer.encode("ab, Z9")) == list("ab  Z9")
    assert tokenizer.decode(tokenizer.encode("Same text")) == "Same text"
    assert tokenizer.encode("a", add_special=True) == [tokenizer.bos, 1]


def test_the_second_copy_is_found():
    prompts = part("_repeats").draw(
        jax.random.key(0), 16, seq=32, shortest=3, longest=9, distinct=True
    )
    tokens, target = np.asarray(prompts.tokens), np.asarray(prompts.target)
    for row, query in np.argwhere(np.asarray(prompts.inside)):
        assert tokens[row, target[row, query]] == tokens[row, query + 1]
        assert tokens[row, target[row, query] - 1] == tokens[row, query]
        assert target[row, query] <= query


def test_other_models_are_refused(tmp_path):
    spec = models.AttentionOnlySpec(layers=1, embed=16, heads=2, head_dim=8, vocab=64)
    models.save(models.init(spec, jax.random.key(0)), spec, tmp_path / "one")
    change = {"model": str(tmp_path / "one")}
    with pytest.raises(Exception, match="two layers"):
        execute("induction", change, out=tmp_path / "run")


def test_a_seed_that_gives_nan_is_the_worst(tmp_path):
    n = 4
    history = lambda x: part("_training").History(  # noqa: E731
        50 * np.arange(1, n + 1),
        *(np.full(n, x), np.full(n, 2 * x)),
        *(np.full((n, 1, 4), x), np.full((n, 1, 4), x)),
    )
    found = {
        "plain": [history(x) for x in (0.1, np.nan)],
        "smeared": [history(x) for x in (0.9, np.nan)],
    }
    run = Run(tmp_path)
    part("_smeared").report(found, np.ones((2, 4)), run)
    numbers = {number.name: number.value for number in run.notes.numbers}
    for name in ("smeared_worst", "plain_best"):
        assert np.isnan(numbers[f"prefix_matching_{name}"])
    assert np.isnan(numbers["icl_above_plain_worst"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--length", "32"], "at most 31"),
        (["--length", "1"], "length"),
        (["--prompts", "0"], "prompts"),
        (["--seeds", "0"], "seeds"),
        (["--seed", "-1"], "seed"),
    ],
)
def test_sizes_that_make_no_prompts_are_refused(tmp_path, words, says):
    with pytest.raises(ConfigError, match=says):
        execute("induction", words, out=tmp_path / "run")
