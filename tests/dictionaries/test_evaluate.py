"""Numbers of dictionaries: by hand, of planted features, whatever the batches."""

import functools

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax import dictionaries as d
from mijax._errors import ConfigError, PositionError, ShapeError, SiteError
from mijax.data import Examples, Prompts

RANDOM = np.random.default_rng(0)
EMBED, FEATURES, ACTIVE = 12, 8, 3


@functools.cache
def planted():
    """Orthonormal features, three of them in each example, and their dictionary."""
    rows = np.linalg.qr(RANDOM.normal(size=(EMBED, EMBED)))[0][:FEATURES]
    hidden = np.zeros((101, FEATURES))
    for row in hidden:
        row[RANDOM.choice(FEATURES - 1, ACTIVE, replace=False)] = RANDOM.uniform(
            1, 2, ACTIVE
        )
    return jnp.float32(hidden @ rows), jnp.float32(rows), hidden


def dictionary(rows, architecture=None, centre=None):
    size, embed = rows.shape
    new = d.untrained(
        architecture or d.ReLU(), d.SAE(embed), latents=size, key=jax.random.key(0)
    )
    weights = d.Weights(
        jnp.asarray(rows),
        jnp.zeros(size),
        jnp.asarray(rows),
        jnp.zeros(embed) if centre is None else jnp.float32(centre),
    )
    return eqx.tree_at(lambda x: x.weights, new, weights)


def numbers(found):
    """Every number of an evaluation, as a tree."""
    return eqx.filter(found, eqx.is_inexact_array_like)


def test_a_dictionary_of_the_true_features():
    x, rows, hidden = planted()
    found = d.evaluate(dictionary(rows), x, baselines=False)
    # Orthogonal features do not disturb each other: rounding alone is left.
    active = (np.asarray(dictionary(rows).encode(x)) > 1e-3).mean(0)
    np.testing.assert_allclose(active, (hidden > 0).mean(0), atol=1e-6)
    assert abs(float(found.fvu.mean)) < 1e-10
    np.testing.assert_allclose(found.cosine.mean, 1, atol=1e-6)
    np.testing.assert_allclose(found.bias.mean, 1, atol=1e-6)
    exact = d.evaluate(dictionary(rows, d.TopK(ACTIVE)), x, baselines=False)
    assert float(exact.l0.mean) == ACTIVE
    assert float(exact.l0.high) == float(exact.l0.low) == ACTIVE
    # One feature is never there.
    assert exact.dead == 1 / FEATURES
    assert exact.dense == (FEATURES - 1) / FEATURES
    np.testing.assert_allclose(exact.density, (hidden > 0).mean(0), atol=1e-6)
    assert exact.baselines == {}
    assert d.similarity(rows, dictionary(rows)).mean == pytest.approx(1, abs=1e-5)


def test_fvu_of_a_constant_offset():
    # Writing the mean alone leaves all of the variance, however large the offset.
    x = RANDOM.normal(size=(500, EMBED)) * np.arange(1, EMBED + 1) + 1e3
    mean = x.mean(0)
    nothing = dictionary(np.zeros((4, EMBED), np.float32), centre=mean)
    found = d.evaluate(nothing, jnp.float32(x), baselines=False)
    assert float(found.fvu.mean) == pytest.approx(1, abs=1e-5)
    assert found.dead == 1
    # Off by one everywhere: 1 + embed / variance, by hand.
    off = dictionary(np.zeros((4, EMBED), np.float32), centre=mean + 1)
    variance = ((x - mean) ** 2).sum(1).mean()
    found = d.evaluate(off, jnp.float32(x), baselines=False)
    assert float(found.fvu.mean) == pytest.approx(1 + EMBED / variance, rel=1e-4)


def test_ratios_and_their_intervals_by_hand():
    x, rows, _ = planted()
    # All latents at half of what they are: half is missed, and the bias is a half.
    half = eqx.tree_at(lambda s: s.weights.decoder, dictionary(rows), rows / 2)
    found = d.evaluate(half, x, baselines=False)
    x = np.asarray(x, np.float64)
    error = (x**2).sum(1) / 4
    spread = ((x - x.mean(0)) ** 2).sum(1)
    fvu = error.mean() / spread.mean()
    assert float(found.fvu.mean) == pytest.approx(fvu, rel=1e-5)
    assert float(found.bias.mean) == pytest.approx(0.5, rel=1e-5)
    assert float(found.cosine.mean) == pytest.approx(1, rel=1e-5)
    # Delta method: the standard deviation of the linearised ratio.
    wide = 1.96 * (error - fvu * spread).std(ddof=1) / spread.mean() / len(x) ** 0.5
    assert float(found.fvu.high - found.fvu.mean) == pytest.approx(wide, rel=1e-3)


def test_batches_do_not_matter():
    x, rows, _ = planted()
    x = x + 3 * jnp.asarray(RANDOM.normal(size=x.shape), jnp.float32) + 20
    given = dictionary(rows)
    one, other = (numbers(d.evaluate(given, x, batch=n)) for n in (7, 64))
    chex.assert_trees_all_close(one, other, atol=1e-6, rtol=1e-6)
    # A source has the same examples in another order.
    source = Examples(x[:98], batch=14)
    drawn, whole = (
        d.evaluate(given, data, examples=98, batch=14, baselines=False)
        for data in (source, x[:98])
    )
    chex.assert_trees_all_close(numbers(drawn), numbers(whole), rtol=1e-5, atol=1e-5)
    assert d.evaluate(given, source, examples=30, baselines=False).examples == 30


def test_baselines():
    x, rows, _ = planted()
    x = jnp.asarray(RANDOM.normal(size=x.shape), jnp.float32) * jnp.arange(EMBED) + 5
    found = d.evaluate(dictionary(rows, d.TopK(ACTIVE)), x)
    values = np.linalg.eigvalsh(np.cov(np.asarray(x).T))
    pca = found.baselines["pca"]
    unexplained = values[:-ACTIVE].sum() / values.sum()
    assert float(pca.fvu.mean) == pytest.approx(unexplained, rel=1e-4)
    assert float(pca.l0.mean) == ACTIVE
    random = found.baselines["random"]
    assert float(random.l0.mean) <= ACTIVE
    assert random.density.shape == found.density.shape
    lines = str(found).splitlines()
    assert [line.split()[0] for line in lines] == ["L0", "dictionary", "random", "pca"]
    assert len({len(line) for line in lines}) == 1


def test_density_histogram():
    x, rows, hidden = planted()
    found = d.evaluate(dictionary(rows, d.TopK(ACTIVE)), x, baselines=False)
    counts, ends = found.histogram(bins=10)
    assert counts.sum() == FEATURES - 1
    share = np.log10((hidden[:, 0] > 0).mean())
    assert counts[np.searchsorted(ends, share) - 1] > 0


def test_transcoders_are_measured_against_their_outputs():
    x = jnp.asarray(RANDOM.normal(size=(64, 6)), jnp.float32)
    weight = jnp.asarray(RANDOM.normal(size=(6, 4)), jnp.float32)
    new = d.untrained(
        *(d.TopK(2), d.Transcoder(6, 4, skip=True)),
        latents=8,
        key=jax.random.key(0),
        tied=False,
    )
    linear = eqx.tree_at(
        lambda c: (c.weights.skip, c.weights.decoder), new, (weight, jnp.zeros((8, 4)))
    )
    source = Examples(x, x @ weight, batch=16)
    found = d.evaluate(linear, source, examples=64)
    assert abs(float(found.fvu.mean)) < 1e-9
    assert set(found.baselines) == {"random"}
    assert float(found.baselines["random"].fvu.mean) > 0.5


def test_similarity(unchecked):
    rows = jnp.array([[1.0, 0, 0], [0, 2, 0], [3, 4, 0]])
    within = d.similarity(rows)
    np.testing.assert_allclose(within.best, [0.6, 0.8, 0.8], atol=1e-6)
    np.testing.assert_array_equal(within.match, [2, 2, 1])
    assert within.unique == pytest.approx(1 / 3)
    assert within.mean == pytest.approx(2.2 / 3)
    between = d.similarity(rows, jnp.array([[0, -1.0, 0], [1, 1, 0], [0, 0, 0]]))
    root = 2**-0.5
    np.testing.assert_allclose(between.best, [root, root, 7 / 5 * root], atol=1e-6)
    assert between.unique == 0
    _, known, _ = planted()
    found = d.similarity(known, dictionary(known[::-1] * 3))
    assert found.mean == pytest.approx(1, abs=1e-5)
    assert found.unique == 1
    # Only the features that it has are found.
    assert d.similarity(known, dictionary(known[:4])).mean == pytest.approx(0.5)
    with pytest.raises(ShapeError, match="cannot be compared"):
        d.similarity(rows, jnp.ones((2, 4)))


@functools.cache
def texts(n=160, latents=30):
    """Pooled latents: of class c, latent 3 c is high, and a little of 3 c + 1 too."""
    labels = RANDOM.integers(0, 3, n)
    x = RANDOM.exponential(size=(n, latents)) * 0.3
    for i, c in enumerate(labels):
        x[i, 3 * c] += 1.5
        x[i, 3 * c + 1] += 0.3
    return jnp.float32(x), jnp.asarray(labels)


def test_sparse_probes_find_planted_latents():
    x, labels = texts()
    found = d.sparse_probe(x[:100], labels[:100], (x[100:], labels[100:]))
    np.testing.assert_array_equal(found.chosen[:, 0], [0, 3, 6])
    assert found.k == (1, 2, 5, 20)
    assert found.classes.shape == (4, 3)
    means = [float(one.mean) for one in found.accuracy]
    np.testing.assert_allclose(means, found.classes.mean(1), rtol=1e-5)
    assert min(means) > 0.8
    assert all(one.low <= one.mean <= one.high for one in found.accuracy)
    assert len(str(found).splitlines()) == 5
    # What says nothing of the class is at chance, as one-sided labels do not help.
    noise = RANDOM.exponential(size=x.shape)
    chance = d.sparse_probe(
        jnp.float32(noise[:100]), labels[:100], (jnp.float32(noise[100:]), labels[100:])
    )
    assert all(abs(float(one.mean) - 0.5) < 0.15 for one in chance.accuracy)


def test_probes_are_logistic_regressions():
    from mijax.dictionaries.evaluation._logistic import logistic  # noqa: PLC0415

    x, labels = texts()
    x, y = np.asarray(x[:, :4], np.float64), np.asarray(labels == 0)
    weight = np.where(y, 2.0, 0.5)
    w, b = logistic(
        jnp.float32(x), jnp.asarray(y), jnp.float32(weight), jnp.float32(0.7)
    )
    p = 1 / (1 + np.exp(-(x @ np.asarray(w) + float(b))))
    # At the optimum the derivatives vanish, of features in units of their spread.
    variance = np.cov(x.T, aweights=weight, ddof=0).diagonal()
    slope = x.T @ (weight * (p - y)) + 0.7 * np.asarray(w) * variance
    np.testing.assert_allclose(slope, 0, atol=1e-3)
    np.testing.assert_allclose((weight * (p - y)).sum(), 0, atol=1e-3)


def written(hidden, rows):
    """Texts of known latents, half of them to fit on."""
    given = dictionary(rows)
    x = jnp.float32(hidden) @ rows
    return given, d.Pooled(x, given.encode(x))


def halves(*arrays):
    half = len(arrays[-1]) // 2
    cut = lambda part: jax.tree.map(lambda a: jnp.asarray(a)[part], arrays)  # noqa: E731
    return cut(slice(half)), cut(slice(half, None))


def test_latents_of_one_class_are_ablated_alone():
    _, rows, _ = planted()
    labels = RANDOM.integers(0, 4, 240)
    hidden = RANDOM.uniform(size=(240, FEATURES)) * 0.5
    hidden[np.arange(240), labels] += 2.0
    given, texts = written(hidden, rows)
    fitted, held_out = halves(texts, labels)
    found = d.perturb(given, fitted, held_out, n=(1, 3))
    assert (found.accuracy > 0.95).all()
    # Without its latent no text is of the class: its probe is at chance.
    assert float(found.meant[0]) == pytest.approx(0.5, abs=0.05)
    assert abs(float(found.others[0])) < 0.1
    assert float(found.score[0].mean) == pytest.approx(
        float(found.meant[0] - found.others[0]), abs=1e-5
    )
    # By hand: latent c written out of the activations, class by class.
    from mijax.dictionaries.evaluation._concepts import fit  # noqa: PLC0415
    from mijax.dictionaries.evaluation._logistic import balanced  # noqa: PLC0415

    sides = jnp.arange(4)[:, None] == fitted[1]
    w, b = fit(fitted[0].x, sides, jax.vmap(balanced)(sides), 1.0)
    x, truth = np.asarray(held_out[0].x), np.asarray(held_out[1])
    falls = np.zeros((4, 4))
    for c in range(4):
        left = x - np.outer(np.asarray(held_out[0].latents)[:, c], rows[c])
        for probe in range(4):
            own = truth == probe
            right = [(z @ w[probe] + b[probe] > 0) == own for z in (x, left)]
            was, now = ((r[own].mean() + r[~own].mean()) / 2 for r in right)
            falls[c, probe] = was - now
    score = np.mean([falls[c, c] - np.delete(falls[c], c).mean() for c in range(4)])
    assert float(found.score[0].mean) == pytest.approx(float(score), abs=1e-4)


def test_a_biased_probe_is_set_right():
    # There is a latent for each side, so that the probe needs no bias, and each has a
    # number of its own, so that the penalty treats both sides alike.
    rows = jnp.eye(EMBED)[:FEATURES]
    wanted, spurious = RANDOM.random((2, 400)) < 0.5
    hidden = RANDOM.uniform(size=(400, FEATURES)) * 0.1
    for at, attribute, size, noise in ((0, wanted, 1, 0.45), (2, spurious, 3, 0.1)):
        for side, there in ((0, attribute), (1, ~attribute)):
            hidden[:, at + side] += np.abs(
                size * there + RANDOM.normal(size=400) * noise
            )
    given, texts = written(hidden, rows)
    found = d.unbias(given, *halves(texts, wanted, spurious), n=(1, 2))
    assert found.biased < 0.75
    assert found.clean > 0.85
    assert float(found.score[1].mean) > 0.7
    share = (found.accuracy[1] - found.biased) / (found.clean - found.biased)
    assert float(found.score[1].mean) == pytest.approx(float(share), abs=1e-4)
    # Of latents that say nothing there is no use.
    noise = jnp.asarray(RANDOM.normal(size=(FEATURES, EMBED)), jnp.float32) * 1e-3
    none = eqx.tree_at(lambda s: s.weights.decoder, given, noise)
    left = d.unbias(none, *halves(texts, wanted, spurious), n=(2,))
    assert abs(float(left.score[0].mean)) < 0.1


def test_absorption_by_hand():
    # Latent 0 is the concept, latent 1 a special case of it that also writes it, and
    # latent 2 has nothing to do with it.
    root = 0.5**0.5
    rows = jnp.array([[1.0, 0, 0, 0], [root, root, 0, 0], [0, 0, 1, 0]])
    latents = np.array(
        [
            [2, 0, 3],  # its own latent says all of it
            [0, 2, 3],  # fully absorbed: 2 root of 2 root
            [1, 2, 0],  # partly: 2 root, besides 1
            [3, 0.5, 0],  # 0.5 root is too small a share
        ]
    )
    x = jnp.float32(latents) @ rows
    exact = eqx.tree_at(
        lambda s: s.weights.encoder, dictionary(rows), jnp.linalg.pinv(rows).T
    )
    np.testing.assert_allclose(exact.encode(x), latents, atol=1e-5)
    # Rounding alone may make others active.
    kept = eqx.tree_at(lambda s: s.weights.bias, exact, jnp.full(3, -1e-4))
    probe = jnp.array([2.0, 0, 0, 0])
    found = d.absorption(kept, x, probe, [0])
    expected = [0, 1, 2 * root / (2 * root + 1), 0]
    np.testing.assert_allclose(found.fractions, expected, atol=1e-3)
    assert float(found.fraction.mean) == pytest.approx(np.mean(expected), abs=1e-3)
    assert float(found.full.mean) == 0.25
    # With both latents its own, nothing is absorbed.
    assert not d.absorption(kept, x, probe, [0, 1]).fractions.any()
    with pytest.raises(ConfigError, match="0 to 2"):
        d.absorption(kept, x, probe, [3])


@functools.cache
def model():
    return mijax.testing.tiny_gpt2(jax.random.key(3))


SITE = mijax.Site("resid_post", layer=1)
IDS = [[1, 9, 2, 7, 11, 3], [1, 2, 3, 4], [1, 50, 40, 30, 20]]


def constant(value):
    """A dictionary that writes one activation, whatever it reads."""
    return dictionary(np.zeros((64, 32), np.float32), centre=value)


def test_recovered_of_what_is_known():
    prompts = Prompts.from_ids(IDS)
    identity = dictionary(np.concatenate([np.eye(32), -np.eye(32)]).astype(np.float32))
    found = d.recovered(model(), identity, prompts, SITE)
    assert found.tokens == 12
    np.testing.assert_allclose(found.ce["spliced"].mean, found.ce["clean"].mean, 1e-5)
    for share in (*found.ce_share.values(), *found.kl_share.values()):
        assert float(share.mean) == pytest.approx(1, abs=1e-4)
    zero = d.recovered(model(), constant(np.zeros(32)), prompts, SITE)
    assert float(zero.ce_share["zero"].mean) == pytest.approx(0, abs=1e-5)
    assert float(zero.kl_share["zero"].mean) == pytest.approx(0, abs=1e-5)
    x = np.asarray(mijax.capture(model(), prompts.tokens, SITE))
    mean = x[np.asarray(prompts.mask)].mean(0)
    of_mean = d.recovered(model(), constant(mean), prompts, SITE)
    assert float(of_mean.ce_share["mean"].mean) == pytest.approx(0, abs=1e-4)
    assert str(of_mean).splitlines()[1].split()[0] == "clean"


def test_recovered_of_one_head():
    """Only that head is replaced and ablated."""
    prompts = Prompts.from_ids(IDS)
    given = d.untrained(d.TopK(4), d.SAE(8), latents=16, key=jax.random.key(1))
    found = d.recovered(model(), given, prompts, mijax.Site("z", layer=1, head=2))
    tokens, counts = prompts.tokens, np.asarray(prompts.mask)[:, 1:]

    def kl(edit):
        p, q = (jax.nn.log_softmax(mijax.run(model(), tokens, e)) for e in (None, edit))
        return ((jnp.exp(p) * (p - q)).sum(-1)[:, :-1][counts]).mean()

    for name, edit in (
        ("zero", mijax.Zero()),
        ("spliced", d.Splice(given, error=False)),
    ):
        expected = kl(edit.at("z", layer=1, head=2))
        np.testing.assert_allclose(found.kl[name].mean, expected, rtol=1e-4)
    with pytest.raises(ShapeError, match=r"one of 4 heads: give Site\('z'"):
        d.recovered(model(), given, prompts, mijax.Site("z", layer=1))


def test_recovered_by_the_definition():
    prompts = Prompts.from_ids(IDS)
    given = d.untrained(d.TopK(4), d.SAE(32), latents=64, key=jax.random.key(1))
    found = d.recovered(model(), given, prompts, SITE, exclude=[1])
    # The first token is left alone, and what follows the end cannot matter.
    edits = d.Splice(given, error=False).at(
        "resid_post", layer=1, position=slice(1, None)
    )
    clean, spliced = (
        np.asarray(jax.nn.log_softmax(mijax.run(model(), prompts.tokens, e)))
        for e in (None, edits)
    )
    ce, kl, n = np.zeros(2), 0.0, 0
    for i, ids in enumerate(IDS):
        for at in range(1, len(ids) - 1):
            ce -= clean[i, at, ids[at + 1]], spliced[i, at, ids[at + 1]]
            kl += (np.exp(clean[i, at]) * (clean[i, at] - spliced[i, at])).sum()
            n += 1
    assert found.tokens == n == 9
    np.testing.assert_allclose(found.ce["clean"].mean, ce[0] / n, rtol=1e-5)
    np.testing.assert_allclose(found.ce["spliced"].mean, ce[1] / n, rtol=1e-5)
    np.testing.assert_allclose(found.kl["spliced"].mean, kl / n, rtol=1e-4)
    zero = float(found.ce["zero"].mean)
    share = (zero - ce[1] / n) / (zero - ce[0] / n)
    np.testing.assert_allclose(found.ce_share["zero"].mean, share, rtol=1e-4)
    low, high = found.ce["clean"].low, found.ce["clean"].high
    assert low < found.ce["clean"].mean < high
    # Other padding, the same numbers.
    padded = Prompts.from_ids(IDS, pad=33)
    again = d.recovered(model(), given, padded, SITE, exclude=[1])
    chex.assert_trees_all_close(again, found, rtol=1e-5, atol=1e-6)


X = jnp.ones((4, EMBED))
BAD = {
    "endless": (
        lambda: d.evaluate(dictionary(planted()[1]), Examples(X, batch=2)),
        ConfigError,
        "number of examples",
    ),
    "few": (
        lambda: d.evaluate(dictionary(planted()[1]), X, examples=5),
        ConfigError,
        "4 examples, not 5",
    ),
    "shape": (
        lambda: d.evaluate(dictionary(planted()[1]), jnp.ones((4, 3))),
        ShapeError,
        r"\[example, 12\], got \[4, 3\]: check site",
    ),
    "rank": (
        lambda: d.evaluate(dictionary(planted()[1]), jnp.ones((2, 4, 12))),
        ShapeError,
        r"got \[2, 4, 12\]: give x.reshape\(-1, 12\)",
    ),
    "rank_of_source": (
        lambda: d.evaluate(
            dictionary(planted()[1]),
            Examples(jnp.ones((2, 4, 12)), batch=2),
            examples=2,
        ),
        ShapeError,
        r"reads activations \[12\], the source gives \[4, 12\]",
    ),
    "none_counts": (
        lambda: d.recovered(
            model(), constant(np.zeros(32)), jnp.ones((2, 1), int), SITE
        ),
        PositionError,
        "No token counts",
    ),
    "position": (
        lambda: d.recovered(
            *(model(), constant(np.zeros(32)), jnp.ones((2, 3), int)),
            mijax.Site("resid_post", layer=1, position=0),
        ),
        PositionError,
        "no position",
    ),
    "all_layers": (
        lambda: d.recovered(
            *(model(), constant(np.zeros(32)), jnp.ones((2, 3), int)),
            mijax.Site("resid_post"),
        ),
        SiteError,
        "layer=",
    ),
    "one_class": (
        lambda: d.sparse_probe(X, jnp.zeros(4, int), (X, jnp.zeros(4, int))),
        ConfigError,
        "Classes are",
    ),
    "labels": (
        lambda: d.sparse_probe(X, jnp.zeros(4, int), (X[:, :3], jnp.zeros(4, int))),
        ShapeError,
        "label per example",
    ),
    "groups": (
        lambda: d.unbias(
            dictionary(planted()[1]),
            *[(d.Pooled(X, jnp.ones((4, FEATURES))), jnp.arange(4) < 2, X[:, 0] > 0)]
            * 2,
            n=(1,),
        ),
        ConfigError,
        "each is among",
    ),
    "texts": (
        lambda: d.perturb(dictionary(planted()[1]), *[(d.Pooled(X, X), X[:, 0])] * 2),
        ShapeError,
        "pooled activations",
    ),
    "k": (
        lambda: d.sparse_probe(X, jnp.arange(4) % 2, (X, jnp.arange(4) % 2), k=(13,)),
        ConfigError,
        "1 to 12",
    ),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.usefixtures("unchecked")
def test_what_is_refused(case, unchecked):
    make, error, said = BAD[case]
    with pytest.raises(error, match=said):
        make()
