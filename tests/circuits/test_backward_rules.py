"""Circuit methods with backward rules and with GradDrop, against compositions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax import Site, attribution, circuits, nn, testing
from mijax._errors import ConfigError

CLEAN = jnp.array([[5, 6, 7, 8, 11], [1, 2, 3, 4, 12]])
CORRUPT = jnp.array([[5, 9, 7, 8, 11], [1, 9, 3, 7, 12]])
METRIC = mijax.logit_difference(jnp.array([3, 7]), jnp.array([4, 2]))
TASK = circuits.Task(CLEAN, CORRUPT, metric=METRIC)
MODELS = {
    "gpt2": testing.tiny_gpt2,
    "llama": testing.tiny_llama,
    "parallel": testing.tiny_parallel,
    "attention only": testing.tiny_attention_only,
}
RULES = {
    "GIM": ("edge", nn.GIM()),
    "GIM at nodes": ("node", nn.GIM(3.0)),
    "RelP": ("edge", nn.RelP()),
    "AH-rule": ("edge", nn.RelP(freeze_pattern=True)),
}


def tiny(name):
    return MODELS[name](jax.random.key(2))


@pytest.mark.parametrize("name", RULES)
def test_rules_are_eap_on_the_ruled_model(name):
    level, rule = RULES[name]
    model = tiny("llama")
    found = circuits.discover(model, TASK, circuits.EAP(level, rule)).values
    plain = circuits.EAP(level)
    ruled = circuits.discover(rule(model), TASK, plain).values
    np.testing.assert_array_equal(found, ruled)
    assert not np.allclose(found, circuits.discover(model, TASK, plain).values)


@pytest.mark.parametrize(
    ("name", "rule"), [("gpt2", None), ("gpt2", nn.GIM()), ("llama", nn.RelP())]
)
def test_nodes_are_the_sites_that_they_write(name, rule):
    """Two forwards, one of circuits and one of sites, and the same gradients."""
    model = tiny(name)
    method = circuits.EAP(level="node", rule=rule)
    nodes = circuits.discover(model, TASK, method, keep_prompts=True).prompts
    sites = {"z": Site("z"), "mlp_out": Site("mlp_out")}
    options = {"method": attribution.AtP(rule=rule)}
    found = attribution.attribute(model, CLEAN, CORRUPT, METRIC, sites, **options)
    heads, mlps = found["z"].sum(2), found["mlp_out"].sum(2)
    expected = jnp.concatenate([heads, mlps[..., None]], -1).reshape(len(CLEAN), -1)
    np.testing.assert_allclose(nodes[:, 1:], expected, atol=2e-5)


@pytest.mark.parametrize("name", MODELS)
def test_atp_star_is_a_mean_over_layers_held_constant(name):
    model = tiny(name)
    mlp = "m0" in circuits.Graph.of(model).senders
    method = circuits.AtPStar()
    nodes = circuits.discover(model, TASK, method, keep_prompts=True).prompts
    writes = ["attn_out"] + (["mlp_out"] if mlp else [])
    source = {w: mijax.capture(model, CLEAN, Site(w)) for w in writes}
    names = {"z": "z", "mlp_out": "mlp_out"} if mlp else {"z": "z"}
    sites = {n: Site(n) for n in names}
    clean, corrupt = (mijax.capture(model, t, sites) for t in (CLEAN, CORRUPT))
    total = 0
    for layer in range(model.n_layers):
        held = [mijax.Patch(source).at(w, layer=layer) for w in writes]
        gradient = mijax.gradients(model, CLEAN, METRIC, sites, held)
        score = {n: (clean[n] - corrupt[n]) * gradient[n] for n in sites}
        parts = [score["z"].sum((2, 4))]
        if mlp:
            parts.append(score["mlp_out"].sum((2, 3))[..., None])
        parts = jnp.concatenate(parts, -1).at[:, layer].set(0)
        total += np.abs(parts.reshape(len(CLEAN), -1))
    expected = total / (model.n_layers - 1)
    np.testing.assert_allclose(nodes[:, 1:], expected, atol=2e-5)


def test_atp_star_of_the_input_takes_every_layer():
    model = tiny("gpt2")
    scores = circuits.discover(model, TASK, circuits.AtPStar(level="neuron"))
    assert scores.values.shape == (16, 32)
    assert (scores.values >= 0).all()
    assert scores["input"].max() > 0
    assert scores.error is not None


def test_what_atp_star_cannot_score_is_refused():
    with pytest.raises(ConfigError, match="AtPStar scores nodes, not 'edge'"):
        circuits.AtPStar(level="edge")
    model = tiny("gpt2")
    blocks = jax.tree.map(lambda leaf: leaf[:1], model.blocks)
    model = eqx.tree_at(lambda m: m.blocks, model, blocks)
    with pytest.raises(ConfigError, match="two layers"):
        circuits.discover(model, TASK, circuits.AtPStar())
