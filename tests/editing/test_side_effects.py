"""Reports of side effects, against numbers by hand; placebos; circuit surgery."""

import cases
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax import viz
from mijax.editing import (
    ROME,
    Contexts,
    Fact,
    SideEffects,
    Uncorrected,
    WeightEdit,
    placebo_of,
    rewrite,
    scale_nodes,
    side_effects,
    transplant_nodes,
)
from mijax.editing._queries import ngram_entropy

WORDS = [
    " is",
    " in",
    " Rome",
    " Paris",
    " Oslo",
    "Ann",
    "Bob",
    "Cid",
    " Italy",
    " was",
]
TOKENIZER = mijax.data.Tokenizer.from_pieces(WORDS)
FACTS = [
    Fact(
        "{} is in",
        "Ann",
        "Rome",
        "Paris Italy",
        paraphrases=("Ann was in", "Ann was"),
        neighbors=("Bob is in", "Cid is in", "Cid was in"),
    ),
    Fact("{} was in", "Bob", "Oslo", "Rome", neighbors=("Ann is in",)),
]
RELATED = [Fact("{} is in", "Cid", "Oslo", "Paris"), Fact("{} is in", "Bob", "Italy")]
TEXT = jnp.array([[256, 257, 258, 259], [261, 256, 257, 260]])


@pytest.fixture(scope="module")
def lm():
    model = mijax.testing.tiny_gpt2(jax.random.key(0))
    more = 0.7 * jax.random.normal(jax.random.key(1), (202, 32))
    wide = jnp.concatenate([more, model.embedding.weight])

    class Language:
        tokenizer = TOKENIZER

    Language.model = eqx.tree_at(lambda m: m.embedding.weight, model, wide)
    return Language


@pytest.fixture(scope="module")
def edit(lm):
    method = ROME(1, Uncorrected(), Contexts((("{}",),)))
    return rewrite(lm, FACTS[0], method=method).edit


@pytest.fixture(scope="module")
def report(lm, edit):
    return side_effects(lm, edit, FACTS, related=RELATED, text=TEXT, steps=6, batch=4)


def likelihood(model, text, target):
    """Mean log-likelihood per token of a completion, by one plain run."""
    prompt, words = TOKENIZER.encode(text), TOKENIZER.continuation(target)
    logits = jax.nn.log_softmax(mijax.run(model, jnp.array([*prompt, *words])))
    return np.mean([logits[len(prompt) - 1 + i, w] for i, w in enumerate(words)])


def test_scores_are_those_of_counterfact(lm, edit, report):
    for model, found in [
        (lm.model, report.before),
        (edit.apply(lm.model), report.edited),
    ]:
        for i, fact in enumerate(FACTS):

            def margins(texts, fact=fact, model=model):
                new = np.array([likelihood(model, t, fact.target) for t in texts])
                true = np.array([likelihood(model, t, fact.true) for t in texts])
                return np.exp(new) - np.exp(true)

            rewritten = margins([fact.text])
            np.testing.assert_allclose(
                found.efficacy_margin[i], rewritten.mean(), rtol=1e-3, atol=1e-6
            )
            assert found.efficacy[i] == (rewritten > 0).mean()
            near = margins(fact.neighbors)
            np.testing.assert_allclose(
                found.neighborhood_margin[i], -near.mean(), rtol=1e-3, atol=1e-6
            )
            np.testing.assert_allclose(found.neighborhood[i], (near < 0).mean())
        again = margins(FACTS[0].paraphrases, FACTS[0])
        np.testing.assert_allclose(
            found.paraphrase_margin[0], again.mean(), rtol=1e-3, atol=1e-6
        )
        assert np.isnan(found.paraphrase[1])
        assert found.interval("paraphrase").n == 1
    assert report.edited.efficacy_margin[0] > report.before.efficacy_margin[0]


def test_related_facts_divergence_and_growth(lm, edit, report):
    edited = edit.apply(lm.model)
    for model, found in [(lm.model, report.before), (edited, report.edited)]:
        for i, (text, right) in enumerate(
            [("Cid is in", " Paris"), ("Bob is in", " Italy")]
        ):
            best = mijax.run(model, jnp.array(TOKENIZER.encode(text)))[-1].argmax()
            assert found.related[i] == (int(best) == TOKENIZER.token(right))
    before, after = (jax.nn.log_softmax(mijax.run(m, TEXT)) for m in (lm.model, edited))
    expected = (jnp.exp(before) * (before - after)).sum(-1).mean(-1)
    np.testing.assert_allclose(report.edited.divergence, expected, rtol=1e-3)
    np.testing.assert_allclose(report.before.divergence, 0, atol=1e-6)
    np.testing.assert_allclose(report.edited.growth, edit.growth(lm.model), rtol=1e-5)
    assert report.placebo.divergence.min() > 0


def test_entropy_of_generated_text(lm, report):
    # Four different pairs and three different triples; then one pair, always.
    mixed = (2 / 3 * np.log2(4) + 4 / 3 * np.log2(3)) / 2
    np.testing.assert_allclose(ngram_entropy(np.array([1, 2, 3, 4, 5])), mixed)
    assert ngram_entropy(np.array([7, 7, 7, 7, 7])) == 0
    assert report.before.entropy.shape == (2,)
    most = (2 / 3 * np.log2(5) + 4 / 3 * np.log2(4)) / 2
    assert (report.before.entropy <= most + 1e-6).all()


def test_score_is_the_harmonic_mean(report):
    edited = report.edited
    means = [
        edited.efficacy.mean(),
        np.nanmean(edited.paraphrase),
        edited.neighborhood.mean(),
    ]
    expected = 3 / sum(1 / m for m in means) if min(means) > 0 else 0.0
    np.testing.assert_allclose(edited.score, expected)


def test_placebo_is_as_large_and_random(edit):
    other = placebo_of(edit, jax.random.key(3))
    np.testing.assert_allclose(other.norms(), edit.norms(), rtol=1e-5)
    assert [c.delta.rank() for c in other.changes] == [1]
    assert other.places == edit.places
    a, b = (e.changes[0].delta.dense().ravel() for e in (edit, other))
    assert abs(float(a @ b)) < 0.2 * float(a @ a)


def test_it_prints_joins_and_draws(report):
    text = repr(report)
    assert text.splitlines()[0].split() == ["before", "edited", "placebo"]
    assert "Efficacy margin (probability)" in text
    assert "Score (harmonic mean)" in text
    twice = SideEffects.joined([report, report])
    np.testing.assert_array_equal(
        twice.edited.efficacy, np.tile(report.edited.efficacy, 2)
    )
    figure = viz.side_effects(report, title="An edit")
    assert len([axes for axes in figure.axes if axes.get_visible()]) == 5
    labels = [t.get_text() for t in figure.axes[0].get_xticklabels()]
    assert labels == ["Efficacy", "Paraphrase", "Neighbors", "Other facts"]
    figure.canvas.draw()


def test_edits_of_activations_and_refusals(lm, edit):
    zero = mijax.Zero().at("mlp_out", layer=1)
    same = WeightEdit(scale_nodes(lm, ["m1"], factor=0.0).changes)
    found = side_effects(lm, zero, FACTS[0], steps=0, placebo=same)
    np.testing.assert_allclose(
        found.edited.efficacy_margin, found.placebo.efficacy_margin, atol=1e-5
    )
    assert found.edited.entropy.shape == (0,)
    assert found.edited.interval("divergence") is None
    for match, given in [
        ("give placebo=", (lm, zero, FACTS)),
        ("give a language model", (lm.model, edit, FACTS)),
        ("true target", (lm, edit, Fact("{} is in", "Ann", "Rome"))),
    ]:
        with pytest.raises(mijax.MijaxError, match=match):
            side_effects(*given)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_scaled_nodes_are_scaled_activations(name):
    model = cases.model(name)
    tokens = jnp.array([5, 9, 2, 7])
    edit = scale_nodes(model, ["a1.h2", "a1.h0", "m2"], factor=0.3)
    edits = [
        mijax.Scale(0.3).at("z", layer=1, head=2),
        mijax.Scale(0.3).at("z", layer=1, head=0),
        mijax.Scale(0.3).at("mlp_out", layer=2),
    ]
    by_edit = mijax.run(model, tokens, edits)
    found = mijax.run(edit.apply(model), tokens)
    np.testing.assert_allclose(found, by_edit, atol=1e-4)
    assert jnp.abs(found - mijax.run(model, tokens)).max() > 0.1


def test_transplanted_nodes_compute_as_in_the_donor():
    model, donor = cases.model("gpt2"), mijax.testing.tiny_gpt2(jax.random.key(8))
    edited = transplant_nodes(model, donor, ["a0.h1", "m0"]).apply(model)
    # Layer 0 reads the same stream, so the head's output is the donor's on that stream.
    same = eqx.tree_at(
        lambda m: (m.blocks.attention, m.blocks.mlp),
        model,
        (donor.blocks.attention, donor.blocks.mlp),
    )
    tokens = jnp.array([5, 9, 2, 7])
    z = [
        mijax.capture(m, tokens, mijax.Site("z", layer=0))
        for m in (edited, same, model)
    ]
    np.testing.assert_allclose(z[0][:, 1], z[1][:, 1], atol=1e-5)
    np.testing.assert_allclose(z[0][:, 0], z[2][:, 0], atol=1e-5)
    w_out = edited.blocks.mlp.w_out[0]
    np.testing.assert_allclose(w_out, donor.blocks.mlp.w_out[0], atol=1e-6)


def test_refused_nodes():
    model, llama = cases.model("gpt2"), cases.model("llama")
    for match, call in [
        ("not a head or MLP", lambda: scale_nodes(model, ["x1"], factor=0.0)),
        ("each once", lambda: scale_nodes(model, ["m1", "m1"], factor=0.0)),
        ("each once", lambda: scale_nodes(model, "m1", factor=0.0)),
        ("heads 0 to 3, got a1.h4", lambda: scale_nodes(model, ["a1.h4"], factor=0.0)),
        ("layers 0 to 2, got layer 3", lambda: scale_nodes(model, ["m3"], factor=0.0)),
        ("share 2 keys", lambda: transplant_nodes(llama, llama, ["a1.h1"])),
        ("models of the same shape", lambda: transplant_nodes(model, llama, ["m1"])),
    ]:
        with pytest.raises(mijax.MijaxError, match=match):
            call()
