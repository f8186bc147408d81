"""Rows of activations: all of them, once, shuffled, and equal to what capture reads."""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import mijax
from mijax import Site
from mijax._errors import PositionError, ShapeError, SiteError, TokenError
from mijax.core._digest import digest as core_digest
from mijax.data import Activations, Corpus, Tokens
from mijax.data.activations import _activations, _buffer, _reading

VOCAB, SEQ, DOCS = 1024, 8, 24
LENGTHS = np.random.default_rng(0).integers(2, 14, DOCS)
STARTS = 10 + np.cumsum(LENGTHS)
CORPUS = Corpus.from_ids(
    [range(start, start + n) for start, n in zip(STARTS, LENGTHS, strict=True)],
    separator=1,
)
EMBED, MIDDLE = Site("embed"), Site("resid_post", layer=1)


@pytest.fixture(scope="module")
def model():
    """The first two features of `embed` are the token and its position."""
    model = mijax.testing.tiny_gpt2(jax.random.key(0))
    weight = jax.random.normal(jax.random.key(1), (VOCAB, 32))
    weight = weight.at[:, 0].set(jnp.arange(VOCAB)).at[:, 1].set(0)
    positions = model.positions.weight.at[:, 0].set(0).at[:, 1].set(jnp.arange(32))
    return eqx.tree_at(
        lambda m: (m.embedding.weight, m.positions.weight), model, (weight, positions)
    )


def tokens(**options):
    given = {"seq": SEQ, "batch": 4, "pack": False, "bos": 2, "seed": 5}
    return Tokens(CORPUS, **given | options)


def source(model, inputs=MIDDLE, **options):
    given = {"batch": 16, "buffer": 48, "tokens": tokens()}
    return Activations(model, inputs=inputs, **given | options)


def take(source, batches, state=None):
    state = source.start() if state is None else state
    found = []
    for _ in range(batches):
        state, batch = source.batch(state)
        found.append(batch)
    return state, found


def drained(source):
    """Batches until the epochs are over."""
    state, found = take(source, source.available // source.rows)
    with pytest.raises(TokenError, match="epochs of tokens are over"):
        source.batch(state)
    rows = np.concatenate([np.asarray(batch.x) for batch in found])
    return rows, source.slots - int(state.free)


def expected_rows(stream, exclude):
    """Token and position of every row of an epoch, by a loop."""
    windows = stream._windows
    rows = [windows[i] for i in range(len(windows))]
    return sorted(
        (int(row[p]), p)
        for row, length in rows
        for p in range(length)
        if row[p] not in exclude
    )


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("exclude", [None, (), (1, 2, 40, 41)])
def test_every_valid_row_once(model, pack, exclude):
    stream = tokens(pack=pack, epochs=2)
    found, left = drained(
        source(model, EMBED, tokens=stream, exclude=exclude, batch=2, buffer=48)
    )
    wanted = expected_rows(stream, (1, 2) if exclude is None else exclude) * 2
    found = sorted((int(row[0]), int(row[1])) for row in found)
    assert left in (0, 1)
    assert len(found) + left == len(wanted)
    counts = {row: wanted.count(row) - found.count(row) for row in wanted}
    assert set(found) <= set(wanted)
    assert sorted(counts.values())[-1] <= 1
    assert sum(counts.values()) == left


def test_rows_are_what_capture_reads(model):
    sites = [EMBED, MIDDLE, Site("mlp_out", layer=2), Site("resid_final")]
    stream = tokens()
    _, batches = take(source(model, sites, tokens=stream), 8)
    windows = [stream._windows[i] for i in range(stream.windows)]
    rows = np.stack([row for row, _ in windows])
    truth = np.stack(mijax.capture(model, rows, sites), axis=-2)
    place = {
        (int(r[p]), p): (i, p) for i, (r, n) in enumerate(windows) for p in range(n)
    }
    for batch in batches:
        assert batch.x.shape == (16, 4, 32)
        where = [place[int(row[0, 0]), int(row[0, 1])] for row in batch.x]
        chex.assert_trees_all_close(
            np.asarray(batch.x), np.stack([truth[at] for at in where]), atol=1e-5
        )


def test_goes_on_bit_for_bit(model):
    """Also from arrays of NumPy, which stay as they are; a state can be used twice."""
    rows = source(model, targets=EMBED)
    early, first = take(rows, 3)
    saved = jax.tree.map(np.array, early)
    kept = jax.tree.map(np.array, saved)
    _, straight = take(rows, 12, early)
    _, again = take(rows, 12, early)
    _, resumed = take(source(model, targets=EMBED), 12, saved)
    _, anew = take(rows, 15)
    chex.assert_trees_all_equal(straight, again)
    chex.assert_trees_all_equal(straight, resumed)
    chex.assert_trees_all_equal([*first, *straight], anew)
    chex.assert_trees_all_equal(saved, kept)
    chex.assert_trees_all_equal_shapes_and_dtypes(rows.start(), saved, early)
    assert not np.array_equal(straight[0].x, first[0].x)


def test_rows_of_a_prompt_are_spread(model):
    stream = tokens(batch=8)
    _, batches = take(source(model, EMBED, tokens=stream, batch=32, buffer=128), 6)
    ids = [np.asarray(batch.x[:, 0]).astype(int) for batch in batches]
    document = [np.searchsorted(STARTS, i, side="right") for i in ids]
    assert min(len(set(rows)) for rows in document) > 8
    neighbours = np.mean([np.diff(i) == 1 for i in ids])
    assert neighbours < 0.1


def test_seed_decides(model):
    _, one = take(source(model, EMBED), 2)
    _, other = take(source(model, EMBED, tokens=tokens(seed=6)), 2)
    assert not np.array_equal(one[0].x, other[0].x)


def test_one_program_for_all_layers(model, monkeypatch):
    traced = chex.assert_max_traces(_buffer.fill.__wrapped__, n=1)
    program = eqx.filter_jit(traced, donate="all-except-first")
    monkeypatch.setattr(_activations, "fill", program)
    for layer in range(3):
        take(source(model, Site("resid_post", layer=layer)), 10)


class Counted(eqx.Module):
    """A norm that says when it is computed."""

    inner: eqx.Module
    seen: list = eqx.field(static=True)

    def __call__(self, x):
        jax.debug.callback(lambda _: self.seen.append(1), x[0, 0])
        return self.inner(x)


def test_nothing_above_the_site_is_computed(model):
    seen, ends = [], []
    counted = eqx.tree_at(
        lambda m: (m.blocks.norm_1, m.norm),
        model,
        (Counted(model.blocks.norm_1, seen), Counted(model.norm, ends)),
    )
    prompt = jnp.arange(5)
    for site, layers, final in (
        (EMBED, 0, 0),
        (Site("z", layer=0, head=1), 1, 0),
        (MIDDLE, 2, 0),
        (Site("resid_final"), 3, 1),
    ):
        sites = _reading.traced((site,))
        found = eqx.filter_jit(_reading.read)(counted, sites, prompt)
        jax.block_until_ready(found)
        jax.effects_barrier()
        assert (len(seen), len(ends)) == (layers, final)
        truth = mijax.capture(model, prompt, site).reshape(5, -1)
        chex.assert_trees_all_close(found[0], truth, atol=1e-5)
        seen.clear()
        ends.clear()


def test_eight_devices_are_one(model):
    mesh = mijax.train.mesh(data=8)
    stream = tokens(batch=8)
    options = {"targets": [EMBED, MIDDLE], "tokens": stream}
    one = take(source(model, **options), 7)
    split = source(model, mesh=mesh, **options)
    many = take(split, 7)
    chex.assert_trees_all_close(one[1], many[1], atol=1e-5)
    layout = NamedSharding(mesh, PartitionSpec("data"))
    for array in jax.tree.leaves((many[0].rows, many[1])):
        assert array.sharding.is_equivalent_to(layout, array.ndim)
    saved = jax.tree.map(np.asarray, many[0])
    chex.assert_trees_all_equal(take(split, 3, saved)[1], take(split, 3, many[0])[1])


def test_shapes(model):
    other = jax.tree.map(lambda a: a * 2 if eqx.is_inexact_array(a) else a, model)
    _, (both,) = take(source([model, other], targets=[EMBED, MIDDLE]), 1)
    assert both.x.shape == (16, 2, 32)
    assert both.y.shape == (16, 2, 2, 32)
    chex.assert_trees_all_close(2 * both.y[:, 0, 0], both.y[:, 1, 0], rtol=1e-6)
    chex.assert_trees_all_equal(both.x, both.y[:, :, 1])
    _, (z,) = take(source(model, Site("z", layer=1)), 1)
    _, (head,) = take(source(model, Site("z", layer=1, head=3)), 1)
    assert z.y is z.x
    chex.assert_trees_all_close(z.x[:, 24:], head.x, atol=1e-6)


def test_digest_knows_what_matters(model):
    digest = source(model).digest
    assert digest == source(model).digest
    # The training loop's own, by which checkpoints know the run.
    assert core_digest(source(model)) == core_digest(source(model))
    changed = eqx.tree_at(lambda m: m.norm.weight, model, model.norm.weight + 1)
    others = (
        source(changed),
        source(model, Site("resid_post", layer=2)),
        source(model, Site("resid_pre", layer=1)),
        source(model, [MIDDLE]),
        source(model, targets=EMBED),
        source(model, exclude=()),
        source(model, tokens=tokens(seed=6)),
        source(model, buffer=64),
    )
    assert digest not in {other.digest for other in others}
    half = jax.tree.map(
        lambda a: a.astype(jnp.bfloat16), eqx.filter(model, eqx.is_array)
    )
    half = eqx.combine(half, model)
    assert source(half).digest != digest
    assert take(source(half), 1)[1][0].x.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"buffer": 15}, ShapeError, "buffer of 15 rows cannot give batches of 16"),
        ({"batch": 0}, ShapeError, "batches of 0"),
        ({"inputs": Site("resid_post")}, SiteError, "read at one layer"),
        ({"inputs": Site("resid_post", layer=3)}, SiteError, "layers 0 to 2"),
        ({"inputs": []}, ShapeError, "nothing to read"),
        ({"inputs": Site("embed", position=1)}, PositionError, "at every token"),
        (
            {"inputs": [MIDDLE, Site("mlp_post", layer=0)]},
            ShapeError,
            r"unequal width cannot be stacked \(resid_post 32, mlp_post 64\)",
        ),
        ({"tokens": tokens(seq=33)}, PositionError, "33 tokens and .* context is 32"),
        ({"exclude": range(VOCAB)}, TokenError, "give 0 rows that are not left out"),
        (
            {"tokens": tokens(epochs=1), "batch": 500, "buffer": 500},
            TokenError,
            "and a batch takes 500",
        ),
    ],
)
def test_refuses(model, options, error, says):
    with pytest.raises(error, match=says):
        source(model, **options)


def test_refuses_what_the_model_lacks_and_what_a_mesh_cannot_split(model):
    attention = mijax.testing.tiny_attention_only(jax.random.key(0))
    few = Tokens(Corpus.from_ids([[9]]), seq=1, batch=1)
    with pytest.raises(SiteError, match="no site 'mlp_out'"):
        source(attention, Site("mlp_out", layer=0), tokens=few)
    with pytest.raises(TokenError, match="has token id 99 and the model 64 tokens"):
        source(attention, EMBED, tokens=Tokens(Corpus.from_ids([[99]]), seq=1, batch=1))
    mesh = mijax.train.mesh(data=8)
    with pytest.raises(ShapeError, match="batch of 20 rows cannot be split over 8"):
        source(model, mesh=mesh, batch=20, tokens=tokens(batch=8))
    with pytest.raises(ShapeError, match="tokens' batch of 4 rows cannot be split"):
        source(model, mesh=mesh)
    axes = jax.make_mesh((8,), ("rows",), (jax.sharding.AxisType.Auto,))
    with pytest.raises(ShapeError, match="split over 'data'"):
        source(model, mesh=axes, tokens=tokens(batch=8))
