"""Directional ablation, its weight form, and the selection of a direction."""

import dataclasses

import cases
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax import steering
from mijax.data import Prompts

R = jax.random.normal(jax.random.key(11), (32,)) * 3
STREAM = ("resid_pre", "attn_out", "mlp_out")


def sites_of(name):
    return STREAM[:2] if name == "attention_only" else STREAM


@pytest.mark.parametrize("name", ["gpt2", "llama", "parallel", "attention_only"])
def test_weights_equal_activations(name):
    model = cases.model(name)
    edits = steering.ablate_direction(R, sites=sites_of(name))
    ablated = mijax.run(model, cases.CLEAN, edits)
    permanent = steering.orthogonalize(model, R)
    logits = mijax.run(permanent, cases.CLEAN)
    np.testing.assert_allclose(logits, ablated, rtol=1e-5, atol=1e-5)
    assert float(jnp.abs(ablated - mijax.run(model, cases.CLEAN)).max()) > 0.1
    # Ablation of what is not written is the identity.
    again = mijax.run(permanent, cases.CLEAN, edits)
    np.testing.assert_allclose(logits, again, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "parallel"])
def test_nothing_of_the_direction_is_left(name):
    model = cases.model(name)
    written = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    where = {site: mijax.Site(site) for site in written}
    plain = mijax.capture(model, cases.CLEAN, where)
    edits = steering.ablate_direction(R)
    acts = mijax.capture(model, cases.CLEAN, where, edits)
    unit = R / jnp.linalg.norm(R)
    for site in written:
        assert float(jnp.abs(acts[site] @ unit).max()) < 1e-5, site
        assert float(jnp.abs(plain[site] @ unit).max()) > 1e-2, site


def test_generation_under_ablation_is_that_of_the_weights():
    model = cases.model("gpt2")
    found = mijax.generate(
        model,
        cases.CLEAN,
        steps=4,
        lengths=cases.LENGTHS,
        edits=steering.ablate_direction(R),
    )
    permanent = steering.orthogonalize(model, R)
    expected = mijax.generate(permanent, cases.CLEAN, steps=4, lengths=cases.LENGTHS)
    assert found.tolist() == expected.tolist()


def test_a_zero_direction_removes_nothing():
    model = cases.model("gpt2")
    edits = steering.ablate_direction(jnp.zeros(32))
    np.testing.assert_array_equal(
        mijax.run(model, cases.CLEAN, edits), mijax.run(model, cases.CLEAN)
    )


ANSWER, COUNT, CONSTANT = 40, 8, 63


@pytest.fixture(scope="module")
def planted():
    """A model in which tokens 0 to 15 have a direction that means token 40."""
    model = cases.model("gpt2")
    unit = np.random.default_rng(0).normal(size=32)
    unit -= unit.mean()
    unit /= np.linalg.norm(unit)
    embedding = np.array(model.embedding.weight)
    embedding -= np.outer(embedding @ unit, unit)
    head = embedding.copy()
    embedding[:16] += 12 * unit
    head[ANSWER] += 4 * unit
    changes = {
        "embedding": mijax.nn.Embedding(jnp.asarray(embedding)),
        "unembedding": mijax.nn.Unembedding(jnp.asarray(head)),
    }
    blocks = jax.tree.map(lambda leaf: leaf, model.blocks)
    blocks = eqx.tree_at(
        lambda b: (b.attention.w_o, b.mlp.w_out), blocks, replace_fn=lambda w: 0.1 * w
    )
    return dataclasses.replace(model, blocks=blocks, **changes), jnp.float32(unit)


def prompts(seed, *, planted):
    """Prompts of unequal length that end in a token with or without the direction."""
    rng = np.random.default_rng(seed)
    low, high = (0, 16) if planted else (16, 40)
    rows = [
        [*rng.integers(16, 39, rng.integers(2, 5)), CONSTANT, rng.integers(low, high)]
        for _ in range(COUNT)
    ]
    return Prompts.from_ids([list(map(int, row)) for row in rows])


@pytest.fixture(scope="module")
def selection(planted):
    train = prompts(0, planted=True), prompts(1, planted=False)
    validation = prompts(2, planted=True), prompts(3, planted=False)
    return steering.select(
        planted[0],
        train,
        validation,
        tokens=[ANSWER],
        template=2,
        rule=steering.Rule(most_kl=0.5),
        controls=3,
    )


def test_a_planted_direction_is_selected(planted, selection):
    unit = planted[1]
    vector = selection.direction.vectors[0]
    cosine = float(vector @ unit / jnp.linalg.norm(vector))
    assert cosine > 0.9
    assert selection.position == -1
    layer = selection.direction.layers[0]
    assert layer < int(0.8 * 3)
    assert selection.direction.site == "resid_pre"
    row = (1, layer)
    assert selection.kept[row]
    assert (
        selection.scores.ablated[row] == selection.scores.ablated[selection.kept].min()
    )
    # Removing it hides the behavior, adding it makes it; random directions do neither.
    assert selection.base[0] > 0 > selection.base[1]
    assert selection.scores.ablated[row] < 0 < selection.scores.added[row]
    assert (selection.control.ablated > 0).all()
    assert (selection.control.added < 0).all()
    assert not selection.kept[:, 2:].any()


def test_no_difference_at_a_common_token_of_layer_0(selection):
    # The token before the last one is the same everywhere, but its position is not.
    assert selection.candidates.shape == (2, 3, 32)
    assert (np.linalg.norm(selection.candidates[1], axis=-1) > 1).all()
    assert not selection.kept[0].any()


def test_scores_are_their_formulas(planted, selection):
    model = planted[0]
    kept = []
    for seed, sign in ((2, 1), (3, -1)):
        each = prompts(seed, planted=sign > 0)
        score = scores(model, each, None)
        kept.append(each[np.flatnonzero(sign * score > 0)])
    assert selection.used[2:] == tuple(map(len, kept))
    row, layer = 1, 1
    r = np.float64(selection.candidates[row, layer])
    edits = [mijax.Project(r).at(site) for site in STREAM]
    ablated = scores(model, kept[0], edits).mean()
    np.testing.assert_allclose(selection.scores.ablated[row, layer], ablated, rtol=1e-3)
    add = mijax.Add(jnp.float32(r)).at("resid_pre", layer=layer)
    added = scores(model, kept[1], add).mean()
    np.testing.assert_allclose(selection.scores.added[row, layer], added, rtol=1e-3)
    p, q = (probabilities(model, kept[1], e) for e in (None, edits))
    kl = (p * (np.log(p + 1e-6) - np.log(q + 1e-6))).sum(-1).mean()
    np.testing.assert_allclose(
        selection.scores.kl[row, layer], kl, rtol=1e-3, atol=1e-5
    )


def probabilities(model, given, edits):
    logits = mijax.run(model, given, edits)
    last = np.float64(logits[np.arange(len(given)), np.asarray(given.last)])
    powers = np.exp(last - last.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def scores(model, given, edits):
    p = probabilities(model, given, edits)[:, ANSWER]
    return np.log(p + 1e-8) - np.log(1 - p + 1e-8)


def test_log_odds():
    logits = np.log([[0.1, 0.2, 0.3, 0.4]])
    expected = np.log(0.6 / 0.4)
    np.testing.assert_allclose(steering.log_odds(logits, [1, 3]), [expected], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": steering.Rule(most_kl=-1.0)}, "No candidate passes: of 6"),
        ({"tokens": [64]}, "must be 0 to 63"),
        ({"tokens": []}, "got none"),
        ({"tokens": [41]}, "None of 8 prompts shows"),
        ({"template": 5}, "shortest prompt"),
        ({"template": 0}, "1 token or more"),
    ],
)
def test_bad_selection(planted, options, message):
    train = prompts(0, planted=True), prompts(1, planted=False)
    options = {"tokens": [ANSWER], "template": 2, "controls": 0} | options
    with pytest.raises(mijax.MijaxError, match=message):
        steering.select(planted[0], train, train, **options)


def normed_embedding():
    model = cases.model("llama")
    return eqx.tree_at(
        lambda m: m.embedding.norm, model, model.norm, is_leaf=lambda x: x is None
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: steering.orthogonalize(cases.model("sandwich"), R), "linear_writes"),
        (lambda: steering.orthogonalize(cases.model("gpt2"), R[:16]), "model width 32"),
        (
            lambda: steering.orthogonalize(normed_embedding(), R),
            "embedding with a norm",
        ),
        (
            lambda: steering.orthogonalize(object(), R),
            "Expected a Transformer to orthogonalize, got object",
        ),
        (
            lambda: mijax.run(
                cases.model("gpt2"), cases.CLEAN, steering.ablate_direction(R[:16])
            ),
            "site width 32",
        ),
    ],
)
def test_bad_ablation(call, message):
    with pytest.raises(mijax.MijaxError, match=message):
        call()
