"""Othello-GPT: it runs, goes on after a stop, and counts as it says."""

import importlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mijax.experiment import execute, load


def part(name):
    package = load("othello").function.__module__
    return importlib.import_module(f"{package}.{name}")


RULES = part("_rules").Othello(4)


def held_out():
    return RULES.games(jax.random.key(9), 64)


def test_tiny_runs_and_writes_everything(tmp_path):
    result = execute("othello/tiny", {}, out=tmp_path / "run")
    assert result.passed
    numbers = {number.name: number.value for number in result.numbers}
    assert numbers["updates_per_second"] > 0
    # Every mean is over more than one square, so over what anything can say.
    assert numbers["probe_prior"] < numbers["probe_mine_yours"] < 1
    written = {path.name for path in result.folder.iterdir()}
    names = ("training", "probes", "squares", "errors", "histogram", "boards", "case")
    assert {f"{name}.{kind}" for name in names for kind in ("png", "svg")} <= written


def test_training_that_was_stopped_goes_on_where_it_was(tmp_path, monkeypatch):
    training, asked = part("_training"), []

    def fit(objectives, source, *, steps, **_):
        asked.append(steps)
        return SimpleNamespace(params=jnp.full(2, float(steps)))

    monkeypatch.setattr(training.train, "fit", fit)
    monkeypatch.setattr(training, "before", lambda objectives: jnp.zeros(2))
    monkeypatch.setattr(
        training,
        "measured",
        lambda params, _: training.Legality(*[np.array(params)] * 3),
    )

    def stop(done, total):
        if done == 100:
            raise KeyboardInterrupt

    def run(progress):
        objective = SimpleNamespace(steps=250)
        return training.trained(
            *([objective], None, None), every=100, folder=tmp_path, progress=progress
        )

    with pytest.raises(KeyboardInterrupt):
        run(stop)
    found = run(lambda done, total: None)
    assert asked == [100, 200, 250]
    assert found.updates.tolist() == [0, 100, 200, 250]
    assert found.history.illegal[:, 0].tolist() == [0, 100, 200, 250]
    assert (found.done, float(found.models[0])) == (150, 250)


def test_legality_is_that_of_a_loop():
    training, games = part("_training"), held_out()
    random = np.random.default_rng(0)
    logits = random.normal(size=(64, 11, 13)).astype(np.float32)
    chances = np.asarray(jax.nn.log_softmax(logits))
    legal, lengths = np.asarray(games.legal), np.asarray(games.lengths)
    rows = []
    for game in range(64):
        for move in range(lengths[game] - 1):
            may = legal[game, move].nonzero()[0]
            here = chances[game, move]
            excess = -here[may].mean() - np.log(len(may))
            rows.append([here.argmax() not in may, 1 - np.exp(here[may]).sum(), excess])
    found = training.legality(jnp.asarray(chances), games)
    np.testing.assert_allclose(found, np.mean(rows, axis=0), rtol=1e-4)


def test_errors_count_wrong_and_missing_moves():
    errors = part("_intervening").errors
    legal = np.array([[True, True, False, False], [False, False, False, True]])
    logits = np.array([[[3.0, 1.0, 2.0, 0.0], [0.0, 1.0, 2.0, 3.0]]])
    np.testing.assert_array_equal(errors(logits, legal), [[2, 0]])


@pytest.mark.parametrize("kind", ["flip", "erase"])
def test_cases_differ_in_one_square_and_in_what_is_legal(kind):
    cases = part("_intervening").draw(RULES, held_out(), kind, 20, seed=0)
    changed = cases.board != cases.edited
    assert len(cases.at) == 20
    assert (changed.sum(1) == 1).all()
    assert (changed.argmax(1) == cases.square).all()
    rows = np.arange(20)
    assert (cases.board[rows, cases.square] == cases.was).all()
    assert (
        cases.edited[rows, cases.square] == (-cases.was if kind == "flip" else 0)
    ).all()
    assert (cases.wanted != cases.legal).any(1).all()
    assert cases.wanted.any(1).all()
    # What was legal is what the game went on with.
    following = cases.tokens[rows, np.minimum(cases.at + 1, 10)]
    inside = cases.at < 10
    assert cases.legal[rows, following.clip(max=11)][inside].all()


def test_a_change_puts_the_coordinate_where_it_should_be():
    x = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    unit = np.ones(8, np.float32) / 8**0.5
    edit = part("_intervening").Along(*map(jnp.asarray, (unit, 7.0, 1.0)))
    found = np.asarray(edit(jnp.asarray(x), None))
    np.testing.assert_allclose(found @ unit, 7, rtol=1e-6)
    beside = np.eye(8) - np.outer(unit, unit)
    np.testing.assert_allclose(found @ beside, x @ beside, atol=1e-6)
