"""Progress: a callback, a bar after a while, or nothing; one bar at a time."""

import sys
import time

import jax
import pytest
from cases import CLEAN, model

import mijax
from mijax import _progress
from mijax._errors import ConfigError
from mijax._progress import reporting, reports


class Screen:
    """A screen that remembers what it showed."""

    def __init__(self, name):
        self.name, self.shown, self.closed = name, [], False

    def show(self, done, total, seconds):
        self.shown.append((done, total))

    def close(self):
        self.closed = True


@pytest.fixture
def screens(monkeypatch):
    made = []

    def make(name):
        made.append(Screen(name))
        return made[-1]

    monkeypatch.setattr(_progress, "_screen", make)
    monkeypatch.setattr(_progress, "PATIENCE", 0.02)
    monkeypatch.setattr(_progress, "PERIOD", 0.01)
    return made


@reports("Inner")
def inner(*, progress=None):
    if progress:
        progress(1, 1)
    time.sleep(0.05)


@reports("Outer")
def outer(*, progress=None, wait=0.1):
    if progress:
        progress(1, 4)
    inner()
    time.sleep(wait)
    if progress:
        progress(4, 4)


def test_only_the_outermost_call_draws(screens):
    outer()
    assert [screen.name for screen in screens] == ["Outer"]
    assert screens[0].shown[0] == (1, 4)
    assert screens[0].shown[-1] == (4, 4)
    assert screens[0].closed
    outer()  # the next call draws again
    assert len(screens) == 2


def test_quick_work_shows_nothing(screens, monkeypatch):
    monkeypatch.setattr(_progress, "PATIENCE", 60.0)
    start = time.monotonic()
    inner()
    assert time.monotonic() - start < 10
    assert not screens[0].shown


def test_a_callable_or_false_draws_no_bar(screens):
    seen = []
    outer(progress=lambda *numbers: seen.append(numbers))
    outer(progress=False)
    assert seen == [(1, 4), (4, 4)]
    assert not screens


def test_the_bar_ends_with_the_error(screens):
    @reports("Work")
    def fails(*, progress=None):
        progress(1, 3)
        time.sleep(0.05)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert screens[0].closed
    assert screens[0].shown[-1] == (1, 3)


def test_without_a_terminal_nothing_is_reported():
    with reporting(None, "Work") as report:
        assert report is None


def test_a_terminal_is_found_and_can_be_refused(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("MIJAX_PROGRESS", raising=False)
    assert _progress._screen("Work") is not None
    monkeypatch.setenv("MIJAX_PROGRESS", "0")
    assert _progress._screen("Work") is None


def test_something_else_is_refused():
    with pytest.raises(ConfigError, match="False for none"):
        inner(progress=True)


def test_a_notebook_bar_is_html_without_widgets():
    text = _progress._Shown("A <b>", 1, 4, 61.0)._repr_html_()
    assert "A &lt;b&gt;" in text
    assert 'value="0.2500"' in text
    assert "1/4 1:01, 3:03 left" in text


@pytest.mark.parametrize(
    "verb",
    [
        mijax.sweep,
        mijax.circuits.discover,
        mijax.circuits.acdc_thresholds,
        mijax.circuits.optimal_ablation,
        mijax.dictionaries.features,
        mijax.data.store,
        mijax.probes.fit,
    ],
)
def test_long_verbs_draw_a_bar(verb, screens):
    with pytest.raises((TypeError, mijax.MijaxError, AttributeError)):
        verb(*[None] * 3)
    assert len(screens) == 1


def test_sweep_and_training_report(screens):
    tiny, tokens = model("gpt2"), jax.numpy.asarray(CLEAN)
    found = []
    patch = mijax.Zero().at("z")
    metric = mijax.logit_difference(1, 2)
    mijax.sweep(
        tiny,
        tokens,
        patch,
        over=("layer",),
        metric=metric,
        progress=lambda *numbers: found.append(numbers),
    )
    assert found[-1][0] == found[-1][1] > 0
    assert not screens
