"""Features against a loop over tokens in numpy."""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax import Site
from mijax import dictionaries as d
from mijax._errors import ConfigError, ShapeError, SiteError, TokenError
from mijax.data import Corpus, Tokens
from mijax.dictionaries._gather import Carried, Text, _binned, _merged, begin

BOS, END, SEQ = 1, 2, 9
SITE = Site("resid_mid", layer=1)
KEEP = d.Keep(top=4, sampled=5, before=3, after=2, bins=8, words=3, neighbours=2)
LATENTS = [40, 3, 17, 63, 8, 21, 0]
MERGED, BINNED = eqx.filter_jit(_merged), eqx.filter_jit(_binned)


@pytest.fixture(scope="module")
def model():
    return mijax.testing.tiny_gpt2(jax.random.key(0))


@pytest.fixture(scope="module")
def sae():
    new = d.untrained(d.ReLU(), d.SAE(32), latents=64, key=jax.random.key(1))
    # Few are active, one never, and they are of very different size.
    scale = jnp.exp(jax.random.normal(jax.random.key(3), (64,)) * 2)
    bias = (-1.5 * scale).at[0].set(-1e9)
    weights = (new.weights.encoder * scale[:, None], bias)
    where = lambda s: (s.weights.encoder, s.weights.bias)  # noqa: E731
    return eqx.tree_at(where, new, weights)


def stream(batch):
    rng = np.random.default_rng(0)
    texts = [rng.integers(3, 64, size).tolist() for size in rng.integers(1, 14, 23)]
    corpus = Corpus.from_ids(texts, separator=END)
    return Tokens(corpus, seq=SEQ, batch=batch, pack=False, bos=BOS, seed=4)


@pytest.fixture(scope="module")
def text():
    whole = stream(1)
    rows = [whole.whole(i) for i in range(whole.windows)]
    return np.concatenate([r.tokens for r in rows]), [int(r.lengths[0]) for r in rows]


@pytest.fixture(scope="module")
def values(model, sae, text):
    """Latents at every token `[row, seq, latent]`, NaN where it does not count."""
    tokens, lengths = text
    found = np.array(d.latents(model, sae, jnp.asarray(tokens), SITE))
    found[np.arange(SEQ) >= np.asarray(lengths)[:, None]] = np.nan
    found[np.isin(tokens, [BOS, END])] = np.nan
    return found


@pytest.fixture(scope="module")
def gathered(model, sae):
    return d.features(model, sae, stream(4), SITE, latents=LATENTS, keep=KEEP)


def best_of_rows(values, latent):
    """The first largest value of each row, largest first: (row, position)."""
    found = []
    for row, here in enumerate(values[:, :, latent]):
        if np.nan_to_num(here).max() > 0:
            position = int(np.nanargmax(here))
            found.append((-here[position], row, position))
    return [(row, position) for _, row, position in sorted(found)]


def test_numbers_are_those_of_a_loop(gathered, values):
    counted = ~np.isnan(values[:, :, 0])
    assert gathered.tokens == counted.sum()
    assert gathered.latents.tolist() == LATENTS
    never = 0
    for i, latent in enumerate(LATENTS):
        here = values[:, :, latent][counted]
        some = here[here > 0]
        never += not some.size
        np.testing.assert_allclose(gathered.density[i], some.size / here.size)
        np.testing.assert_allclose(
            gathered.mean[i], some.mean() if some.size else 0, rtol=1e-4
        )
        np.testing.assert_allclose(gathered.largest[i], max(here.max(), 0), rtol=1e-4)
        reach = gathered.reach[i]
        assert (reach == 0) == (not some.size)
        if some.size:
            assert reach / 2 <= some.max() < reach
            expected, _ = np.histogram(some, bins=KEEP.bins, range=(0, reach))
            np.testing.assert_array_equal(gathered.counts[i], expected)
    assert never == 1


def test_examples_are_those_of_a_loop(gathered, values, text):
    tokens, lengths = text
    edges = set()
    for i, latent in enumerate(LATENTS):
        best = best_of_rows(values, latent)[: KEEP.top]
        rows = gathered.top.row[i].tolist()
        assert rows == [row for row, _ in best] + [-1] * (KEEP.top - len(best))
        for j, (row, position) in enumerate(best):
            assert gathered.top.position[i, j] == position
            for w, place in enumerate(range(position - 3, position + 3)):
                inside = 0 <= place < lengths[row]
                edges.add((place < 0, place >= lengths[row]))
                expected = tokens[row, place] if inside else -1
                assert gathered.top.tokens[i, j, w] == expected
                value = values[row, place, latent] if inside else np.nan
                found = gathered.top.values[i, j, w]
                np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-5)
        assert np.isnan(gathered.top.values[i, len(best) :]).all()
    assert edges == {(False, False), (True, False), (False, True)}


def test_random_examples_are_active_and_of_different_rows(gathered, values):
    sampled = gathered.sampled
    for i, latent in enumerate(LATENTS):
        rows = sampled.row[i][sampled.row[i] >= 0].tolist()
        assert len(set(rows)) == len(rows)
        assert len(rows) == min(KEEP.sampled, len(best_of_rows(values, latent)))
        for row, position, peak in zip(
            rows, sampled.position[i], sampled.peak[i], strict=False
        ):
            assert 0 < peak == pytest.approx(values[row, position, latent], rel=1e-4)
        peaks = sampled.peak[i][: len(rows)]
        assert (np.diff(peaks) <= 0).all()


def test_neither_the_size_of_batches_nor_the_other_latents_matter(gathered, model, sae):
    some = [17, 0, 40]
    other = d.features(model, sae, stream(7), SITE, latents=some, keep=KEEP)
    places = np.array([gathered.place(latent) for latent in some])
    ours = jax.tree.map(lambda leaf: leaf[places], gathered)
    chex.assert_trees_all_close(ours, other, rtol=1e-4, atol=1e-5)


def test_some_rows_only_in_one_program(model, sae, values, monkeypatch):
    traced = []
    count = lambda *given: traced.append(1) or _merged(*given)  # noqa: E731
    monkeypatch.setattr(mijax.dictionaries._gather, "_merged", count)
    found = d.features(model, sae, stream(4), SITE, latents=[3], rows=10, keep=KEEP)
    assert found.tokens == (~np.isnan(values[:10, :, 0])).sum()
    assert found.top.row.max() < 10
    assert len(traced) == 2  # for both kinds of examples


def test_words_and_neighbours(gathered, model, sae):
    weights = np.asarray(d.logit_weights(model, sae, jnp.asarray(LATENTS)))
    assert gathered.promoted is not None
    assert gathered.suppressed is not None
    order = np.argsort(-weights, 1)
    np.testing.assert_array_equal(gathered.promoted.ids, order[:, :3])
    np.testing.assert_array_equal(gathered.suppressed.ids, order[:, ::-1][:, :3])
    np.testing.assert_allclose(
        gathered.suppressed.values, np.sort(weights, 1)[:, :3], rtol=1e-4
    )
    rows = np.asarray(sae.weights.decoder)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = rows[LATENTS] @ rows.T
    cosines[np.arange(len(LATENTS)), LATENTS] = -2
    order = np.argsort(-cosines, 1)[:, :2]
    np.testing.assert_array_equal(gathered.neighbours.ids, order)
    expected = np.take_along_axis(cosines, order, 1)
    np.testing.assert_allclose(gathered.neighbours.values, expected, atol=1e-6)


def test_where_nothing_is_added_to_the_residual_stream_there_are_no_words(model, sae):
    keep = d.Keep(top=1, sampled=0, before=0, after=0, bins=1, words=1, neighbours=0)
    site = Site("z", layer=0)
    found = d.features(model, sae, stream(4), site, latents=[0], rows=1, keep=keep)
    assert found.promoted is None
    assert found.sampled.tokens.shape == (1, 0, 1)
    assert found.neighbours.ids.shape == (1, 0)


@pytest.mark.parametrize("batch", [2, 5])
def test_ties_go_to_what_comes_first(batch):
    rng = np.random.default_rng(1)
    rows, latents = 10, 6
    values = rng.integers(0, 4, (rows, SEQ, latents)).astype(np.float32)
    values[:, :, 5] = 0
    tokens = rng.integers(0, 9, (rows, SEQ))
    held = begin(latents, KEEP).top
    for first in range(0, rows, batch):
        some = slice(first, first + batch)
        full = np.full(batch, SEQ)
        text = Text(tokens[some], full, np.ones((batch, SEQ), bool), np.int32(first))
        found = jnp.asarray(values[some])
        text = jax.tree.map(jnp.asarray, text)
        held = MERGED(held, found, found, text, KEEP)
    for latent in range(latents):
        best = best_of_rows(values, latent)[: KEEP.top]
        best += [(-1, -1)] * (KEEP.top - len(best))
        pairs = zip(
            held.row[latent].tolist(), held.position[latent].tolist(), strict=True
        )
        assert list(pairs) == best


def test_bins_double_until_the_largest_value_fits():
    values = np.exp(np.random.default_rng(2).normal(size=(6, 50, 3)) * 3)
    values = np.where(np.arange(6)[:, None, None] < 3, values / 1e4, values)
    values = values.astype(np.float32)
    known, largest = begin(3, KEEP), np.zeros(3, np.float32)
    for part in values:
        largest = np.maximum(largest, part.max(0))
        exponent, counts = BINNED(known, jnp.asarray(part[None]), jnp.asarray(largest))
        known = Carried(
            known.active, known.mean, known.largest, exponent, counts, *known[-2:]
        )
    for i in range(3):
        reach = 2.0 ** int(exponent[i])
        assert reach / 2 <= largest[i] < reach
        expected, _ = np.histogram(values[:, :, i], KEEP.bins, (0, reach))
        np.testing.assert_array_equal(counts[i], expected)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("error", "options"),
    [
        (ShapeError, {"latents": [64]}),
        (ShapeError, {"latents": []}),
        (ShapeError, {"latents": [1, 1]}),
        (ConfigError, {"rows": 24}),
        (ConfigError, {"rows": 0}),
        (ConfigError, {"exclude": range(64), "rows": 4}),
        (SiteError, {"site": Site("resid_mid")}),
        (ShapeError, {"site": Site("mlp_post", layer=0)}),
    ],
)
def test_what_cannot_be_is_refused(model, sae, error, options):
    given = {"site": SITE, "keep": KEEP, "latents": LATENTS} | options
    with pytest.raises(error):
        d.features(model, sae, stream(4), **given)


def test_texts_are_no_stream_of_tokens(model, sae, unchecked):
    with pytest.raises(TokenError, match=r"got list: give mijax\.data\.Tokens\("):
        d.features(model, sae, ["a text", "another"], SITE)


def test_sizes_that_cannot_be_are_refused(gathered):
    with pytest.raises(ConfigError):
        d.Keep(top=0)
    with pytest.raises(ShapeError, match="not gathered"):
        gathered.place(1)
