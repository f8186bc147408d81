"""Attributions against patching, finite differences and loops."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from penzai import pz

import mijax
from mijax import Site, nn, testing
from mijax._errors import ConfigError, PositionError, SiteError
from mijax.attribution import AtP, AtPStar, IntegratedGradients, attribute
from mijax.core import StopGradient

CLEAN = jnp.array([[5, 6, 7, 8, 11], [1, 2, 3, 4, 12]])
CORRUPT = jnp.array([[5, 9, 7, 8, 11], [1, 9, 3, 7, 12]])
METRIC = mijax.logit_difference(jnp.array([3, 7]), jnp.array([4, 2]))
MODELS = {
    "gpt2": testing.tiny_gpt2,
    "llama": testing.tiny_llama,
    "parallel": testing.tiny_parallel,
    "attention only": testing.tiny_attention_only,
}
METHODS = {
    "AtP": AtP(),
    "AtP at corrupt": AtP(at="corrupt"),
    "GIM": AtP(rule=nn.GIM()),
    "IntegratedGradients": IntegratedGradients(2),
    "AtPStar": AtPStar(),
}


def tiny(name, seed=0):
    return MODELS[name](jax.random.key(seed))


def without_norms(model):
    return pz.select(model).at_instances_of(nn.LayerNorm).set(nn.Identity())


def linear(model):
    """Without norms, and with patterns that do not depend on the prompt."""
    attention = model.blocks.attention
    return eqx.tree_at(
        lambda m: (m.blocks.attention.w_q, m.blocks.attention.b_q),
        without_norms(model),
        (jnp.zeros_like(attention.w_q), jnp.zeros_like(attention.b_q)),
    )


def one_layer(model):
    blocks = jax.tree.map(lambda leaf: leaf[:1], model.blocks)
    return eqx.tree_at(lambda m: m.blocks, model, blocks)


def losses(model, site, clean=CLEAN, corrupt=CORRUPT):
    """What the metric loses when a site is patched, cell by cell, prompts first."""
    source = mijax.capture(model, corrupt, Site(site))
    axes = ("layer", "position", "head")[: source.ndim - 2]
    swept = mijax.sweep(
        model, clean, mijax.Patch(source).at(site), over=axes, metric=METRIC
    )
    return swept.base.reshape(-1, *[1] * len(axes)) - swept.values


@pytest.mark.parametrize("site", ["z", "v", "attn_out", "resid_pre"])
@pytest.mark.parametrize("at", ["clean", "corrupt"])
def test_atp_is_exact_on_a_linear_model(site, at):
    model = linear(tiny("attention only"))
    found = attribute(model, CLEAN, CORRUPT, METRIC, Site(site), method=AtP(at=at))
    expected = losses(model, site)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("site", ["z", "k", "mlp_out", "resid_mid"])
def test_atp_is_the_limit_of_patching(name, site):
    model = tiny(name)
    table = model.embedding.weight
    table = table.at[9].set(table[6] + 5e-4 * table[9])
    table = table.at[10].set(table[2] + 5e-4 * table[10])
    model = eqx.tree_at(lambda m: m.embedding.weight, model, table)
    corrupt = CLEAN.at[0, 1].set(9).at[1, 1].set(10)
    found = attribute(model, CLEAN, corrupt, METRIC, Site(site))
    expected = losses(model, site, corrupt=corrupt)
    size = np.abs(expected).max()
    assert size > 3e-4
    np.testing.assert_allclose(found, expected, atol=0.02 * size)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_integrated_gradients_add_up(name):
    model = tiny(name)
    expected = METRIC(mijax.run(model, CLEAN)) - METRIC(mijax.run(model, CORRUPT))
    misses = []
    for steps in (4, 16, 64):
        method = IntegratedGradients(steps)
        found = attribute(model, CLEAN, CORRUPT, METRIC, Site("embed"), method=method)
        misses.append(np.abs(found.sum(-1) - expected).max())
    assert misses[2] < 2e-3 * np.abs(expected).max()
    assert misses[2] < misses[1] < misses[0]


def test_integrated_gradients_are_a_mean_over_the_path():
    model, site = tiny("gpt2"), Site("z")
    change = mijax.capture(model, CLEAN, site) - mijax.capture(model, CORRUPT, site)
    ends = [mijax.capture(model, t, Site("embed")) for t in (CORRUPT, CLEAN)]
    total = 0
    for alpha in (1 / 6, 3 / 6, 5 / 6):
        between = mijax.Patch((1 - alpha) * ends[0] + alpha * ends[1]).at("embed")
        total += mijax.gradients(model, CORRUPT, METRIC, site, between)
    found = attribute(
        model, CLEAN, CORRUPT, METRIC, site, method=IntegratedGradients(3)
    )
    np.testing.assert_allclose(found, (change * total / 3).sum(-1), atol=1e-5)


def test_rules_change_the_gradient_alone():
    model = tiny("llama")
    site = Site("resid_pre")
    change = mijax.capture(model, CLEAN, site) - mijax.capture(model, CORRUPT, site)
    ruled = nn.apply(model, nn.RelP()).model
    for at, tokens in (("clean", CLEAN), ("corrupt", CORRUPT)):
        gradient = mijax.gradients(ruled, tokens, METRIC, site)
        method = AtP(at=at, rule=nn.RelP())
        found = attribute(model, CLEAN, CORRUPT, METRIC, site, method=method)
        np.testing.assert_allclose(found, (change * gradient).sum(-1), atol=1e-5)


def recomputed(model, site, edits=None):
    """The QK fix in NumPy: one query or one key at a time, softmax and all."""
    names = {name: Site(name) for name in ("q", "k")}
    clean, corrupt = (mijax.capture(model, t, names) for t in (CLEAN, CORRUPT))
    gradient = mijax.gradients(model, CLEAN, METRIC, Site("pattern"), edits)
    gradient = np.asarray(gradient, float)
    scores = np.zeros(clean[site].shape[:-1])
    for cell in np.ndindex(scores.shape):
        batch, layer, position, head = cell
        q, k = (clean[name][batch, layer, :, head] for name in ("q", "k"))
        before = pattern(model, layer, q, k)
        new = corrupt[site][batch, layer, position, head]
        q = q.at[position].set(new) if site == "q" else q
        k = k.at[position].set(new) if site == "k" else k
        change = before - pattern(model, layer, q, k)
        scores[cell] = (change * gradient[batch, layer, :, head]).sum()
    return scores


def pattern(model, layer, q, k):
    """One head's pattern, in double precision."""
    rotary = model.blocks.attention.rotary
    if rotary is not None:
        rotary = jax.tree.map(lambda leaf: leaf[layer], rotary)
        place = jnp.arange(len(q), dtype=jnp.int32)
        q, k = (rotary(x[:, None], place)[:, 0] for x in (q, k))
    scores = np.asarray(q, float) @ np.asarray(k, float).T / np.sqrt(q.shape[-1])
    scores = np.where(np.tri(len(q), dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("site", ["q", "k"])
def test_the_qk_fix_is_the_softmax_recomputed(name, site):
    model = tiny(name)
    method = AtPStar(grad_drop=False)
    found = attribute(model, CLEAN, CORRUPT, METRIC, Site(site), method=method)
    np.testing.assert_allclose(found, recomputed(model, site), atol=2e-5)


@pytest.mark.parametrize("site", ["q", "k"])
@pytest.mark.parametrize("sharper", [1.0, 30.0])
def test_the_qk_fix_is_exact_where_only_the_softmax_is_not_linear(site, sharper):
    model = one_layer(without_norms(tiny("attention only")))
    weight = lambda m: m.blocks.attention.w_q  # noqa: E731
    model = eqx.tree_at(weight, model, sharper * weight(model))
    corrupt = CORRUPT.at[:, -1].set(13)  # a query matters where the metric reads
    expected = losses(model, site, corrupt=corrupt)
    size = np.abs(expected).max()
    assert size > 0.1
    method = AtPStar(grad_drop=False)
    found = attribute(model, CLEAN, corrupt, METRIC, Site(site), method=method)
    np.testing.assert_allclose(found, expected, atol=3e-5)
    plain = attribute(model, CLEAN, corrupt, METRIC, Site(site))
    assert np.abs(plain - expected).max() > 0.05 * size


@pytest.mark.parametrize("name", MODELS)
def test_grad_drop_is_a_mean_over_layers_held_constant(name):
    model = tiny(name)
    writes = ["attn_out"] + (["mlp_out"] if name != "attention only" else [])
    source = {w: mijax.capture(model, CLEAN, Site(w)) for w in writes}
    sites = {n: Site(n) for n in ("z", "resid_pre", *writes)}
    total = dict.fromkeys(sites, 0)
    for layer in range(model.n_layers):
        held = [mijax.Patch(source).at(w, layer=layer) for w in writes]
        gradient = mijax.gradients(model, CLEAN, METRIC, sites, held)
        for n, site in sites.items():
            clean, corrupt = (mijax.capture(model, t, site) for t in (CLEAN, CORRUPT))
            score = ((clean - corrupt) * gradient[n]).sum(-1)
            if n in writes:  # what a layer writes is held, whatever it would be
                score = score.at[:, layer].set(0)
            total[n] += np.abs(score)
    found = attribute(model, CLEAN, CORRUPT, METRIC, sites, method=AtPStar())
    for n in sites:
        expected = total[n] / (model.n_layers - 1)
        np.testing.assert_allclose(found[n], expected, atol=2e-5, err_msg=n)


@pytest.mark.parametrize("site", ["q", "k"])
def test_both_repairs_work_together(site):
    model = tiny("llama")
    total = 0
    for layer in range(model.n_layers):
        stop = [StopGradient().at(w, layer=layer) for w in ("attn_out", "mlp_out")]
        total += np.abs(recomputed(model, site, stop))
    found = attribute(model, CLEAN, CORRUPT, METRIC, Site(site), method=AtPStar())
    np.testing.assert_allclose(found, total / (model.n_layers - 1), atol=2e-5)


SITES = {
    "whole": Site("k"),
    "one": Site("k", layer=1, position=2, head=3),
    "some": Site("k", layer=jnp.array([1, 2]), position=slice(1, 4), head=0),
    "own": Site("q", position=jnp.array([1, 3]), head=jnp.array([0, 2])),
    "z": Site("z", layer=2, position=jnp.array([1, 3])),
    "mlp_out": Site("mlp_out", layer=jnp.array([0, 2])),
    "mlp_out at one layer": Site("mlp_out", layer=1, position=4),
    "embed": Site("embed"),
}


@pytest.mark.parametrize("method", METHODS)
def test_parts_of_a_site_are_parts_of_its_scores(method):
    model = tiny("llama")
    run = lambda sites: attribute(  # noqa: E731
        model, CLEAN, CORRUPT, METRIC, sites, method=METHODS[method]
    )
    found = run(SITES)
    whole = run({n: Site(n) for n in ("q", "k", "z", "mlp_out")})
    pairs = jnp.arange(2)
    q = whole["q"][pairs, :, jnp.array([1, 3])]
    expected = {
        "whole": whole["k"],
        "one": whole["k"][:, 1, 2, 3],
        "some": whole["k"][:, 1:3, 1:4, 0],
        "own": q[..., jnp.array([0, 2])],
        "z": whole["z"][pairs, 2, jnp.array([1, 3])],
        "mlp_out": whole["mlp_out"][:, jnp.array([0, 2])],
        "mlp_out at one layer": whole["mlp_out"][:, 1, 4],
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)
    assert found["embed"].shape == CLEAN.shape


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_its_prompts_one_by_one(method):
    model = tiny("gpt2")
    sites = [Site("k"), Site("mlp_out")]
    options = {"method": METHODS[method]}
    batch = attribute(model, CLEAN, CORRUPT, METRIC, sites, **options)
    for i in range(len(CLEAN)):
        metric = mijax.logit_difference(METRIC.answer[i], METRIC.wrong[i])
        found = attribute(model, CLEAN[i], CORRUPT[i], metric, sites, **options)
        for one, many in zip(found, batch, strict=True):
            np.testing.assert_allclose(one, many[i], atol=1e-5)


class Traces(list):
    """A list that is one key of a cache."""

    def __hash__(self):
        return id(self)

    def __eq__(self, other):
        return self is other


class Counting(mijax.core.AbstractMetric):
    """Counts how often it is traced."""

    traces: Traces = eqx.field(static=True)
    position: None = None

    def score(self, logits, prompt):
        self.traces.append(1)
        return logits[0, 3] - logits[0, 4]


@pytest.mark.parametrize("method", [AtPStar(), IntegratedGradients(4)])
def test_one_program_serves_every_layer_and_step(method):
    traces = {}
    for name, chosen in (("many", method), ("one", AtP())):
        metric = Counting(Traces())
        for site in (Site("z", layer=1), Site("z", layer=2)):
            attribute(tiny("gpt2"), CLEAN, CORRUPT, metric, site, method=chosen)
        traces[name] = len(metric.traces)
    assert traces["many"] == traces["one"] > 0


def test_what_cannot_be_attributed_is_refused():
    model = tiny("gpt2")
    with pytest.raises(PositionError, match="counterpart of equal length"):
        attribute(model, CLEAN, CORRUPT[:, :-1], METRIC, Site("z"))
    with pytest.raises(SiteError, match="takes no feature"):
        attribute(model, CLEAN, CORRUPT, METRIC, Site("z", feature=1))
    with pytest.raises(SiteError, match="layer 3 is out of range"):
        attribute(model, CLEAN, CORRUPT, METRIC, Site("z", layer=3))
    with pytest.raises(ConfigError, match=r"no run 'clear'.*'clean'"):
        AtP(at="clear")
    with pytest.raises(ConfigError, match="at least one point"):
        IntegratedGradients(0)
    with pytest.raises(ConfigError, match="GradDrop needs two layers"):
        attribute(one_layer(model), CLEAN, CORRUPT, METRIC, Site("z"), method=AtPStar())
