"""Methods on an encoder: a padded prompt is computed as it is alone."""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CLEAN, CORRUPT, LENGTHS, encoder

import mijax
from mijax import Site, circuits, lens, nn
from mijax import dictionaries as d
from mijax._errors import PositionError, ShapeError
from mijax.attribution import AtP, AtPStar, IntegratedGradients, attribute
from mijax.data import Activations, Corpus, Prompts, Tokens

COUNTS = LENGTHS.tolist()
SHORT, SHORTEST = 1, COUNTS[1]
TOLERANCE = 2e-5


def prompts(tokens, pad):
    rows = [row[:n] for row, n in zip(tokens.tolist(), COUNTS, strict=True)]
    return Prompts.from_ids(rows, pad=pad)


PADDED = prompts(CLEAN, 9), prompts(CORRUPT, 31)
METRIC = mijax.logit_difference(jnp.array([4, 5, 6]), jnp.array([7, 8, 9]), position=1)
SITE = Site("resid_post", layer=1)
SAE = d.untrained(d.TopK(4), d.SAE(32), latents=64, key=jax.random.key(1))
METHODS = {
    "AtP": AtP(),
    "AtP at corrupt": AtP(at="corrupt"),
    "GIM": AtP(rule=nn.GIM()),
    "IntegratedGradients": IntegratedGradients(2),
    "AtPStar": AtPStar(),
}


def metric_of(i):
    return mijax.logit_difference(4 + i, 7 + i, position=1)


def pair(i):
    """One prompt and its counterpart without padding."""
    return CLEAN[i, : COUNTS[i]], CORRUPT[i, : COUNTS[i]]


@pytest.mark.parametrize("method", METHODS)
def test_attributions_of_a_padded_prompt_are_those_of_it_alone(method):
    model, given = encoder("llama"), METHODS[method]
    sites = {name: Site(name) for name in ("embed", "q", "k", "z", "mlp_out")}
    found = attribute(model, *PADDED, METRIC, sites, method=given)
    bare = attribute(model, PADDED[0], PADDED[1].tokens, METRIC, sites, method=given)
    chex.assert_trees_all_equal(found, bare)
    for i, n in enumerate(COUNTS):
        alone = attribute(model, *pair(i), metric_of(i), sites, method=given)
        for name in sites:
            axis = 0 if name == "embed" else 1
            padded = np.moveaxis(found[name][i], axis, 0)
            one = np.moveaxis(alone[name], axis, 0)
            np.testing.assert_allclose(padded[:n], one, atol=TOLERANCE, err_msg=name)
            assert not np.any(padded[n:]), name


def test_traced_lengths_are_masked_too():
    site = Site("z")
    run = lambda *both: attribute(encoder("gpt2"), *both, METRIC, site)  # noqa: E731
    expected = run(*PADDED)
    chex.assert_trees_all_close(eqx.filter_jit(run)(*PADDED), expected, atol=TOLERANCE)


@pytest.mark.parametrize("steps", [None, 2])
def test_latents_of_a_padded_prompt_are_those_of_it_alone(steps):
    model = encoder("gpt2")
    found = d.attribute_latents(model, SAE, *PADDED, METRIC, SITE, steps=steps)
    values = d.latents(model, SAE, PADDED[0], SITE)
    pooled = d.pooled(model, SAE, PADDED[0], SITE)
    for i, n in enumerate(COUNTS):
        alone = d.attribute_latents(
            *(model, SAE, *pair(i), metric_of(i), SITE), steps=steps
        )
        np.testing.assert_allclose(found.latents[i, :n], alone.latents, atol=TOLERANCE)
        np.testing.assert_allclose(found.error[i, :n], alone.error, atol=TOLERANCE)
        assert not found.latents[i, n:].any()
        assert not found.error[i, n:].any()
        one = d.latents(model, SAE, pair(i)[0], SITE)
        np.testing.assert_allclose(values[i, :n], one, atol=TOLERANCE)
        mean = d.pooled(model, SAE, pair(i)[0][None], SITE)
        chex.assert_trees_all_close(
            jax.tree.map(lambda a, i=i: a[i : i + 1], pooled), mean, atol=TOLERANCE
        )


def test_a_splice_and_what_it_recovers():
    model, edit = encoder("gpt2"), d.Splice(SAE, error=False).at("resid_post", layer=1)
    found = mijax.run(model, PADDED[0], edit)
    for i, n in enumerate(COUNTS):
        alone = mijax.run(model, pair(i)[0], edit)
        np.testing.assert_allclose(found[i, :n], alone, atol=TOLERANCE)
    short = jax.tree.map(lambda a: a[SHORT:][:1], PADDED[0])
    padded = d.recovered(model, SAE, short, SITE)
    alone = d.recovered(model, SAE, pair(SHORT)[0][None], SITE)
    assert padded.tokens == alone.tokens == SHORTEST - 1
    chex.assert_trees_all_close(
        *({n: run.mean for n, run in r.ce.items()} for r in (padded, alone)), atol=1e-5
    )


def test_direct_attribution_masks_padding():
    model = encoder("gpt2")
    found = lens.direct_logit_attribution(model, PADDED[0], 4, 7, position=1)
    every = lens.direct_logit_attribution(model, PADDED[0], 4, 7)
    for i, n in enumerate(COUNTS):
        alone = lens.direct_logit_attribution(model, pair(i)[0][None], 4, 7, position=1)
        np.testing.assert_allclose(found.heads[i], alone.heads[0], atol=TOLERANCE)
        total = every.total()[i]
        np.testing.assert_allclose(total[1], alone.total()[0], atol=TOLERANCE)
        assert np.isnan(total[n:]).all()


def test_activations_of_short_rows():
    """Rows come shuffled, so each is looked for among those of its text alone."""
    model = encoder("gpt2")
    texts = [row.tolist() for i in range(3) for row in pair(i)]
    corpus = Corpus.from_ids(texts)
    tokens = Tokens(corpus, seq=7, batch=2, pack=False, epochs=1)
    source = Activations(model, tokens, SITE, batch=10, buffer=20, exclude=())
    x = np.asarray(source.batch(source.start())[1].x)
    alone = [mijax.capture(model, jnp.array(text), SITE) for text in texts]
    alone = np.concatenate(alone)
    apart = np.abs(x[:, None] - alone).max(-1).min(1)
    assert len(x) == 10
    assert apart.max() < TOLERANCE


@pytest.mark.parametrize("method", [circuits.NodeExact(), circuits.NodeAttribution()])
def test_circuits_of_nodes_take_lengths_with_the_tokens(method):
    model = encoder("gpt2")
    fn = lambda x: model(x["tokens"], length=x["length"])[0]  # noqa: E731
    inputs = [{"tokens": p.tokens, "length": p.lengths} for p in PADDED]
    one = mijax.model(fn, jax.tree.map(lambda a: a[0], inputs[0]))
    nodes = {"z": ("layer", "head"), "mlp_out": "layer"}
    task = circuits.NodeTask(one, *inputs, metric=METRIC, nodes=nodes)
    found, alone = circuits.discover_nodes(task, method).values, []
    for i in range(len(COUNTS)):
        clean, corrupt = pair(i)
        lone = mijax.model(lambda tokens: model(tokens)[0], clean)
        options = {"metric": metric_of(i), "nodes": nodes}
        own = circuits.NodeTask(lone, clean, corrupt, **options)
        alone.append(circuits.discover_nodes(own, method).values)
    assert np.abs(found).max() > 1e-2
    np.testing.assert_allclose(found, np.mean(alone, 0), atol=TOLERANCE)


def test_what_cannot_be_masked_is_refused():
    model = encoder("gpt2")
    with pytest.raises(PositionError, match="reads padding"):
        attribute(model, *PADDED, mijax.logit_difference(4, 7), Site("z"))
    fn = mijax.model(lambda tokens: model(tokens)[0], CLEAN[0])
    with pytest.raises(ShapeError, match="lengths of prompts"):
        circuits.NodeTask(fn, *PADDED, metric=METRIC, nodes={"z": "head"})
