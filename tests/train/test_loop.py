"""What the loop guards and reports, on an objective of one number."""

import resource
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mijax import train
from mijax._errors import ConfigError, OutputError, TrainingError
from mijax.data import Examples


class Root(train.AbstractObjective):
    """The root of the distance to 1: the loss is finite there, its slope is not."""

    rate: float = 0.5

    def key(self):
        return jax.random.key(0)

    def start(self, key):
        return jnp.float32(0.75), None

    def loss(self, params, memory, batch, step):
        return jnp.sqrt(jnp.abs(params - batch.x.mean())), ({}, None)

    def optimiser(self):
        return optax.sgd(self.rate)


def source(value):
    return Examples(jnp.full((4, 1), value), batch=4)


def test_an_update_that_is_no_number_is_not_kept(tmp_path):
    # One step of 0.25 * 2 * sqrt(0.25) lands on 1, where the slope is infinite.
    told = train.Memory()
    with pytest.raises(TrainingError, match=r"step 2, .*checkpoint is step 1 in"):
        train.fit(
            Root(0.25),
            source(1.0),
            steps=5,
            sinks=[told],
            report=1,
            checkpoint=tmp_path / "run",
            every=1,
        )
    assert [row["loss"] for row in told.rows] == [0.5, 0.0]


class Wide(Root):
    """Numbers that do not compress."""

    def start(self, key):
        return jax.random.normal(key, (100_000,)), None

    def loss(self, params, memory, batch, step):
        return jnp.mean((params - batch.x.mean()) ** 2), ({}, None)


class Windowed(Root):
    """A model with a window of attention, which no gradient reaches."""

    def start(self, key):
        return {"weight": jnp.ones(3), "window": jnp.array([4, 512])}, None

    def loss(self, params, memory, batch, step):
        seen = jnp.where(params["window"] > 100, 1.0, 2.0)
        return (params["weight"].sum() * seen.sum() - batch.x.mean()) ** 2, ({}, None)

    def optimiser(self):
        return optax.adamw(0.1, weight_decay=0.5)


def test_integers_stay_as_they_are():
    params = train.fit(Windowed(), source(1.0), steps=2).params
    assert params["window"].tolist() == [4, 512]
    assert params["window"].dtype == jnp.int32
    assert jnp.all(params["weight"] < 1)


# Writes that orbax left open when one of them failed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_disk_that_is_full_loses_nothing(tmp_path):
    def fit(steps, folder):
        given = {"checkpoint": tmp_path / folder, "every": 2}
        return train.fit(Wide(), source(1.0), steps=steps, **given)

    fit(2, "run")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OutputError, match=r"Cannot write .*checkpoint is step 2 "):
            fit(6, "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    again, whole = fit(6, "run"), fit(6, "other")
    np.testing.assert_array_equal(again.params, whole.params)


def test_the_terminal_shows_where_it_is(capsys):
    told = train.Memory()
    sinks = [told, train.Terminal()]
    train.fit(Root(1e-3), source(2.0), steps=3, sinks=sinks, report=1)
    assert [row["step"] for row in told.rows] == [1, 2, 3]
    assert set(told.rows[0]) == {"step", "loss", "update"}
    shown = capsys.readouterr().err
    assert "Training" in shown
    assert "3/3" in shown


def test_tensorboard_says_what_it_needs(tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(ConfigError, match="pip install tensorboardX"):
        train.TensorBoard(tmp_path)


class Noisy(Root):
    """A noise of each update, as the loss may draw it."""

    def loss(self, params, memory, batch, step):
        noise = jax.random.normal(step.key)
        info = {"noise": noise, "parts": jnp.stack([params, noise])}
        return step.mean(((params - batch.x + noise) ** 2).mean()), (info, None)


class Stop(train.Memory):
    def write(self, step, numbers):
        if step == 7:
            raise KeyboardInterrupt


def test_many_updates_of_one_program_are_the_same_run(tmp_path):
    x = jax.random.normal(jax.random.key(1), (24, 1))
    lanes = [Noisy(0.1), Noisy(0.2)]

    def fit(folder=None, more=(), **options):
        told, data = train.Memory(), Examples(x, batch=4)
        given = {"steps": 13, "sinks": [told, *more], "report": 2, "every": 5}
        given |= {"checkpoint": folder} | options
        return train.fit(lanes, data, **given), told.rows

    one, rows = fit()
    many, others = fit(scan=4)
    meshed, _ = fit(scan=4, mesh=train.mesh(data=2))
    for other in (many, meshed):
        np.testing.assert_allclose(one.params, other.params, rtol=1e-6)
        assert (int(other.step), int(other.source)) == (13, 13)
    for row, other in zip(rows, others, strict=True):
        assert row["step"] == other["step"]
        np.testing.assert_allclose(row["parts"], other["parts"], rtol=1e-5)
    log, other = (train.Jsonl(tmp_path / name) for name in ("log", "other"))
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "run", [log, Stop()], scan=4, report=1)
    again, _ = fit(tmp_path / "run", [log], scan=4, report=1)
    whole, _ = fit(None, [other], scan=4, report=1, every=100)
    np.testing.assert_array_equal(again.params, whole.params)
    assert (tmp_path / "log").read_text() == (tmp_path / "other").read_text()


def test_what_a_program_cannot_draw_is_refused():
    class Outside(Examples):
        def batch(self, state):
            return super().batch(jnp.int32(int(state)))

    data = Outside(jnp.ones((4, 1)), batch=4)
    with pytest.raises(ConfigError, match=r"Outside are made outside of JAX.*scan=1"):
        train.fit(Root(), data, steps=3, scan=2)


def test_the_update_that_failed_is_found_in_its_program():
    with pytest.raises(TrainingError) as alone:
        train.fit(Root(0.25), source(1.0), steps=5)
    with pytest.raises(TrainingError) as among:
        train.fit(Root(0.25), source(1.0), steps=5, scan=8)
    assert "at step 2, on the batch with digest" in str(alone.value)
    assert str(among.value) == str(alone.value)


def test_nothing_to_do_is_refused():
    with pytest.raises(ConfigError, match="at least 1 step"):
        train.fit(Root(), source(1.0), steps=0)


def test_a_checkpoint_past_the_end_is_refused(tmp_path):
    given = (Noisy(), source(2.0))
    train.fit(*given, steps=4, checkpoint=tmp_path / "run")
    assert int(train.fit(*given, steps=4, checkpoint=tmp_path / "run").step) == 4
    with pytest.raises(ConfigError, match="step 4, past steps=2"):
        train.fit(*given, steps=2, checkpoint=tmp_path / "run")


class Judged(Noisy):
    judge: Callable = eqx.field(static=True, default=jnp.square)


def scaled(factor):
    return lambda e: factor * jnp.abs(e)


def test_runs_of_other_functions_are_not_resumed(tmp_path):
    options = {"steps": 2, "checkpoint": tmp_path / "run"}
    train.fit(Judged(judge=scaled(1.0)), source(2.0), **options)
    train.fit(Judged(judge=scaled(1.0)), source(2.0), **options)
    with pytest.raises(OutputError, match="another run"):
        train.fit(Judged(judge=scaled(2.0)), source(2.0), **options)
