"""Indices traced under `jit` raise with checks on where they are out of range."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from cases import CLEAN, METRIC, model

import mijax
from mijax import Site, circuits, lens
from mijax._errors import PositionError, ShapeError

MODEL = model("gpt2")
SOURCE = jnp.ones((3, 3, 7, 4, 8))


def scanned(x):
    """Two marks, one of them in a loop over layers."""

    def layer(x, weight):
        return mijax.site("hidden", jnp.tanh(x @ weight), "row channel"), None

    weights = jnp.linspace(-1, 1, 3 * 4 * 4).reshape(3, 4, 4)
    return mijax.site("out", jax.lax.scan(layer, x, weights)[0], "row channel")


FUNCTION, X = mijax.model(scanned, jnp.ones((2, 4))), jnp.ones((5, 2, 4))


def run(site, edit=None, **place):
    edit = mijax.Zero() if edit is None else edit
    return mijax.run(MODEL, CLEAN, edit.at(site, **place))


def slopes(metric):
    return mijax.gradients(MODEL, CLEAN, metric, Site("z"))


def run_function(**place):
    return mijax.run(FUNCTION, X, mijax.Zero().at("hidden", **place))


def slopes_function(metric):
    return mijax.gradients(FUNCTION, X, metric, Site("hidden"))


def look(**place):
    place = {"layer": 1, "position": 2, "mlp": 3} | place
    return mijax.site_metric(Site("mlp_post", **place))


TRACED = {
    "edit": lambda i: run("z", layer=i),
    "position": lambda i: run("z", position=i),
    "span": lambda i: run("z", position=slice(i, 7)),
    "feature": lambda i: run("z", feature=[0, i]),
    "head_dim": lambda i: run("z", head_dim=i),
    "mlp": lambda i: run("mlp_post", mlp=i),
    "mlps": lambda i: run("mlp_post", mlp=jnp.stack([0, i])),
    "key_position": lambda i: run("pattern", key_position=i),
    "vocab": lambda i: run("logits", vocab=i),
    "heads": lambda i: run("z", head=mijax.PerPrompt(jnp.stack([0, i, 1]))),
    "source": lambda i: run("z", mijax.Patch(SOURCE).from_place(layer=i), layer=1),
    "site": lambda i: mijax.capture(MODEL, CLEAN, Site("z", layer=i)),
    "site mlp": lambda i: mijax.capture(MODEL, CLEAN, Site("mlp_post", mlp=i)),
    "gradient": lambda i: mijax.gradients(MODEL, CLEAN, METRIC, Site("z", head=i)),
    "metric": lambda i: slopes(mijax.probability(3, position=i)),
    "answer": lambda i: slopes(mijax.negative(mijax.probability(i))),
    "look": lambda i: slopes(look(layer=i)),
    "look mlp": lambda i: slopes(look(mlp=i)),
    "logits": lambda i: mijax.probability(3, position=i)(jnp.zeros((1, 3, 8))),
    "token": lambda i: mijax.run(MODEL, CLEAN.at[0, 0].set(i)),
    "edited": lambda i: mijax.run(
        mijax.edited(MODEL, mijax.Zero().at("z", head=i)), CLEAN
    ),
    "direct": lambda i: (
        lens.direct_logit_attribution(MODEL, CLEAN, i, position=3).heads
    ),
    "direct position": lambda i: (
        lens.direct_logit_attribution(MODEL, CLEAN, 3, position=i).heads
    ),
    "layer of a function": lambda i: run_function(layer=i),
    "channel": lambda i: run_function(channel=i),
    "channels": lambda i: run_function(channel=jnp.stack([0, i])),
    "rows": lambda i: run_function(row=mijax.PerPrompt(jnp.stack([0, 1, i, 0, 0]))),
    "captured": lambda i: mijax.capture(FUNCTION, X, Site("hidden", layer=i)),
    "captured row": lambda i: mijax.capture(FUNCTION, X, Site("out", row=i)),
    "slope": lambda i: mijax.gradients(
        FUNCTION, X, lambda out: out.sum(), Site("hidden", channel=i)
    ),
    "source row": lambda i: mijax.run(
        FUNCTION, X, mijax.Patch(X).from_place(row=i).at("out", row=0)
    ),
    "class": lambda i: slopes_function(mijax.probability(i)),
    "row of a metric": lambda i: slopes_function(mijax.probability(0, position=i)),
    "look at a function": lambda i: slopes_function(
        mijax.site_metric(Site("hidden", layer=1, row=i, channel=0))
    ),
}


@pytest.mark.parametrize("case", TRACED)
def test_traced_indices_raise_with_checks_on(case, monkeypatch):
    monkeypatch.setenv("MIJAX_CHECKS", "1")
    use = eqx.filter_jit(TRACED[case])
    jax.block_until_ready(use(jnp.int32(1)))
    for index in (99, -1):
        with pytest.raises(RuntimeError, match="is out of range"):
            jax.block_until_ready(use(jnp.int32(index)))


@pytest.mark.parametrize(
    ("metric", "error", "word"),
    [
        (mijax.probability(4), ShapeError, "answer 4 is not in"),
        (mijax.probability(1, position=2), PositionError, "reads position 2"),
        (mijax.probability(jnp.zeros(3, int)), ShapeError, "answer for 3 prompts"),
    ],
)
def test_metrics_of_a_function_fit_its_output(metric, error, word):
    """Known operands are refused at once: indexing would read another class."""
    with pytest.raises(error, match=word):
        slopes_function(metric)
    with pytest.raises(error, match=word):
        mijax.sweep(
            *(FUNCTION, X, mijax.Zero().at("hidden")), over="layer", metric=metric
        )
    with pytest.raises(error, match=word):
        circuits.NodeTask(
            *(FUNCTION, X), metric=metric, nodes={"out": "row"}, ablation=mijax.Zero()
        )


def test_without_checks_a_program_has_none(monkeypatch):
    def size():
        def use(i):
            return mijax.run(MODEL, CLEAN, mijax.Zero().at("z", layer=i))

        return len(str(jax.make_jaxpr(use)(1)))

    sizes = []
    for value in ("0", "1", ""):
        monkeypatch.setenv("MIJAX_CHECKS", value)
        sizes.append(size())
    assert sizes[0] == sizes[2] < sizes[1]
