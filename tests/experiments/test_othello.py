"""Othello-GPT: it runs, goes on after a stop, and counts as it says."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mijax.core import Site, capture, compose
from mijax.data import Othello, OthelloSource
from mijax.experiment import execute, load
from mijax.models import GPT2Spec

RULES = Othello(4)
SPEC = GPT2Spec(layers=2, embed=32, heads=2, mlp=128, vocab=13, context=11, tied=False)


def part(name):
    package = load("othello").function.__module__
    return importlib.import_module(f"{package}.{name}")


def objectives():
    kind = part("_training").Predicts
    return [kind(SPEC, 200, True, seed=i, learning_rate=5e-3) for i in range(2)]


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


def test_training_that_was_stopped_ends_as_if_it_was_not(tmp_path):
    training, games = part("_training"), held_out()
    source = OthelloSource(RULES, batch_size=16)

    class Stop(Exception):
        pass

    def stop(done, total):
        raise Stop

    def run(name, progress):
        return training.trained(
            *(objectives(), source, games),
            every=100,
            folder=tmp_path / name,
            progress=progress,
        )

    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = run("whole", lambda done, total: None)
    with pytest.raises(Stop):
        run("parts", stop)
    parts = run("parts", lambda done, total: None)
    assert (whole.done, parts.done) == (200, 100)
    for one, two in zip(*map(jax.tree.leaves, (whole[:4], parts[:4])), strict=True):
        np.testing.assert_array_equal(one, two)
    assert whole.history.illegal.shape == (3, 2)


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
    along = part("_intervening").Along
    model = objectives()[0].start(jax.random.key(0))[0]
    tokens = held_out().tokens[0, :5]
    unit = jnp.eye(32)[3]
    edit = along(unit, jnp.float32(7.0), jnp.float32(1.0))
    site = Site("resid_post")
    found = capture(model, tokens, site, edit.at("resid_post", layer=1, position=2))
    before = np.array(capture(model, tokens, site))
    before[1, 2, 3] = 7.0
    np.testing.assert_allclose(found, before, atol=1e-6)
    none = along(unit, jnp.float32(7.0), jnp.float32(0.0)).at("resid_post")
    np.testing.assert_array_equal(
        capture(model, tokens, site, compose(none)), capture(model, tokens, site)
    )
