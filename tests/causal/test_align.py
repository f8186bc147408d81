"""Planted variables: what rotations find, and masks on neurons cannot."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import mijax
from mijax import causal, testing, train
from mijax._errors import ConfigError, ShapeError, SiteError
from mijax.causal import DAS, DBM, BoundlessDAS, Counterfactuals, Search, Subspaces
from mijax.causal import _align as module
from mijax.causal._methods import orthonormal
from mijax.causal._swap import Swap
from mijax.core._block import observed
from mijax.core._rows import Sequence

WIDTH = 6
SITE = mijax.Site("mlp_post", layer=0, position=0)


class Planted(eqx.Module):
    """Two products of signs along two directions, noise along the others."""

    rotation: jax.Array

    def __call__(self, x, edits=None):
        values = jnp.r_[x[0] * x[1], x[2] * x[3], x[4:]]
        rows = Sequence(jnp.zeros(1, jnp.int32))
        return observed(self.forward, mijax.core.compose(edits), rows)(values[None])

    def forward(self, values):
        hidden = mijax.site("mlp_post", values @ self.rotation, "position mlp")
        left, right, *_ = self.rotation @ hidden[0]
        logit = 2 * left * right
        return jnp.array([-logit, logit])


def planted(seed=0):
    drawn = jax.random.normal(jax.random.key(seed), (WIDTH, WIDTH))
    return Planted(orthonormal(drawn))


SIGNS = causal.CausalModel(
    ("x",),
    {
        "left": lambda x: x[0] * x[1],
        "right": lambda x: x[2] * x[3],
        "label": lambda left, right: (left * right > 0).astype(jnp.int32),
    },
)


def draw(key):
    drawn = jax.random.uniform(key, (3 * (WIDTH + 2) + 1,))
    x = 2 * drawn[1:].reshape(3, WIDTH + 2) - 1
    x = jnp.concatenate([jnp.sign(x[:, :4]), 2 * x[:, 4:]], axis=1)
    ways = jnp.array([[1, 0], [0, 1], [1, 1]], bool)
    swapped = ways[(3 * drawn[0]).astype(int)]
    sources = {"left": {"x": x[1]}, "right": {"x": x[2]}}
    which = {"left": swapped[0], "right": swapped[1]}
    label = SIGNS.interchange({"x": x[0]}, sources, which)["label"]
    return Counterfactuals(x[0], x[1:], swapped, label)


TRAIN = causal.Drawn(draw, batch=64)
TEST = causal.Drawn(draw, batch=200, seed=1).batch(jnp.int32(0))[1]


def test_das_recovers_planted_subspaces_in_every_model():
    models = [planted(seed) for seed in range(2)]
    kept = train.Memory()
    searches = [Search(DAS(sizes), SITE) for sizes in ((1, 1), (0, 1))]
    found = causal.align(
        *(models, searches, TRAIN),
        steps=400,
        learning_rate=0.02,
        sinks=[kept],
        report=400,
    )
    right = causal.agreement(models, found, TEST)
    assert right.shape == (2, 2, 200)
    assert right[:, 0].all()
    assert not right[:, 1].all(-1).any()
    eye = np.eye(WIDTH)
    for model, basis, mask in zip(
        models, found.subspaces.basis[:, 0], found.subspaces.mask[:, 0], strict=True
    ):
        np.testing.assert_allclose(basis @ basis.T, eye, atol=1e-5)
        for variable, direction in enumerate(model.rotation[:2]):
            rows = np.asarray(basis)[np.asarray(mask[variable]) > 0]
            angle = scipy.linalg.subspace_angles(rows.T, np.asarray(direction)[:, None])
            assert angle.max() < 0.05
    (row,) = kept.rows
    assert np.shape(row["losses"]) == np.shape(row["agreement"]) == (2, 2)
    interval = causal.iia(models, found, TEST, method="normal")
    np.testing.assert_allclose(interval.mean, right.mean(-1), atol=1e-6)


def test_boundaries_are_learned_and_neurons_do_not_do():
    model = planted()
    both = (True, True)
    bounds = [Search(BoundlessDAS(both, weight=0.1), SITE)]
    found = causal.align(model, bounds, TRAIN, steps=300, learning_rate=0.02)
    assert causal.iia(model, found, TEST).mean[0] > 0.97
    assert 2 <= found.subspaces.mask.sum() < WIDTH
    masks = causal.align(model, [Search(DBM(both), SITE)], TRAIN, steps=300)
    assert causal.iia(model, masks, TEST).mean[0] < 0.95
    # Without the rotation it does: the variables are neurons.
    plain = Planted(jnp.eye(WIDTH))
    masks = causal.align(
        plain, [Search(DBM(both, weight=0.05), SITE)], TRAIN, steps=300
    )
    assert causal.iia(plain, masks, TEST).mean[0] == 1
    np.testing.assert_array_equal(masks.subspaces.mask[0], np.eye(WIDTH)[:2])


def test_other_numbers_share_the_program(no_programs, monkeypatch):
    traces = []
    losses = module.losses
    monkeypatch.setattr(
        module, "losses", lambda *given: traces.append(1) or losses(*given)
    )
    model = causal.MLP(8, width=4, layers=3, classes=2, key=jax.random.key(0))
    count = 0
    for layers, sizes, rate in (((0, 1), (1, 2), 0.1), ((2, 0), (2, 1), 0.2)):
        searches = [
            Search(DAS((k, 1)), mijax.Site("mlp_post", layer=layer, position=0))
            for layer, k in zip(layers, sizes, strict=True)
        ]
        causal.align(model, searches, TRAIN, steps=2, learning_rate=rate)
        count = count or len(traces)
    assert len(traces) == count == 1


def test_agreement_is_a_loop_of_swaps_in_a_transformer():
    model = testing.tiny_attention_only(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 5, 3, 6), 0, 64)
    swapped = jax.random.bernoulli(jax.random.key(2), 0.6, (2, 5, 2))
    label = jax.random.randint(jax.random.key(3), (2, 5), 0, 64)
    basis = jnp.stack(
        [orthonormal(jax.random.normal(jax.random.key(i), (32, 32))) for i in range(4)]
    )
    mask = jnp.zeros((4, 2, 32)).at[:, 0, :9].set(1).at[:, 1, 9:30].set(1)
    sites = [mijax.Site("resid_post", layer=i % 2, position=5 - i) for i in range(4)]
    tasks = [0, 1, 1, 0]
    found = causal.stated(Subspaces(basis, mask), sites, tasks)

    acts = mijax.capture(model, tokens.reshape(-1, 6), mijax.Site("resid_post"))
    acts = acts.reshape(2, 5, 3, *acts.shape[1:])

    def expected(search):
        site, task = sites[search], tasks[search]
        own, *others = jnp.moveaxis(acts[task, :, :, site.layer, site.position], 1, 0)
        on = swapped[task][..., None]
        source = jnp.where(on, jnp.stack(others, axis=1), own[:, None])
        swap = Swap(Subspaces(basis[search], mask[search]), source).at(site)
        return mijax.run(model, tokens[task, :, 0], swap)[:, -1].argmax(-1)

    said = np.array([expected(search) for search in range(4)])
    label = label.at[0, :3].set(said[0, :3]).at[1, 2:].set(said[1, 2:])
    data = tuple(
        Counterfactuals(tokens[t, :, 0], tokens[t, :, 1:], swapped[t], label[t], 6)
        for t in range(2)
    )
    right = causal.agreement(model, found, data)
    np.testing.assert_array_equal(right, said == np.asarray(label)[tasks])
    assert right[0, :3].all()


def test_blocks_and_closest_neurons():
    assert [len(causal.blocks(16, (k, k)).mask) for k in (1, 4, 8)] == [240, 12, 2]
    assert len(causal.blocks(16, (8, 0)).mask) == 2
    with pytest.raises(ConfigError, match="do not fit 4 neurons"):
        causal.blocks(4, (3, 3))
    order = np.array([3, 0, 5, 1, 4, 2])
    tilt = scipy.linalg.expm(0.1 * np.subtract.outer(order, order) / 6)
    spaces = Subspaces(
        jnp.asarray(np.eye(6)[order] @ tilt, jnp.float32)[None],
        jnp.zeros((1, 2, 6)).at[0, 0, :2].set(1).at[0, 1, 2:4].set(1),
    )
    mask = np.asarray(causal.closest_neurons(spaces).mask[0])
    assert [set(np.flatnonzero(row)) for row in mask] == [{3, 0}, {5, 1}]


@pytest.mark.parametrize(
    ("searches", "error", "match"),
    [
        ([], ConfigError, "nothing to search"),
        ([Search(DAS((1, 1)), SITE), Search(DBM((1, 1)), SITE)], ConfigError, "differ"),
        ([Search(DAS((1, 1)), SITE, 1)], ConfigError, "Tasks"),
        ([Search(DAS((1, 1), rows=1), SITE)], ConfigError, "1, 1 dimensions do not"),
        ([Search(DAS((3, 4)), SITE)], ConfigError, "3, 4 dimensions do not"),
        ([Search(DAS((1,)), SITE)], ShapeError, "1 variables"),
        ([Search(DAS((-2, 1)), SITE)], ConfigError, "got -2, 1"),
        ([Search(DAS((0, 0)), SITE)], ConfigError, "got 0, 0"),
        (
            [Search(DAS((1, 1)), mijax.Site("mlp_post", layer=1, position=0))],
            SiteError,
            "no layer 1",
        ),
        ([Search(DAS((1, 1)), mijax.Site("z", layer=0))], ShapeError, "no activations"),
    ],
)
def test_refused(searches, error, match):
    with pytest.raises(error, match=match):
        causal.align(planted(), searches, TRAIN, steps=1)


def test_a_head_that_is_not_there_is_refused():
    model = testing.tiny_gpt2(jax.random.key(0))
    tokens = jnp.array([[5, 6, 7]])
    asked = (tokens[:, None], jnp.ones((1, 1), bool), jnp.array([3]), 3)
    site = mijax.Site("z", layer=0, position=1, head=4)
    whole = causal.stated(causal.blocks(8, (8,)), site)
    with pytest.raises(SiteError, match="no head 4"):
        causal.agreement(model, whole, Counterfactuals(tokens, *asked))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"label": jnp.array([3, 64])}, "Labels are from 0 to 63.* got 64"),
        ({"label": jnp.array([-1, 3])}, "got -1"),
        ({"base": jnp.array([[5, 6, 105], [8, 9, 10]])}, "105"),
        ({"sources": jnp.array([[[8, 9, 105]], [[5, 6, 7]]])}, "105"),
    ],
)
def test_examples_that_the_model_does_not_have_are_refused(change, match):
    model = testing.tiny_gpt2(jax.random.key(0))
    tokens = jnp.array([[5, 6, 7], [8, 9, 10]])
    given = {"base": tokens, "sources": tokens[::-1, None], "label": jnp.array([3, 4])}
    data = Counterfactuals(**given | change, swapped=jnp.ones((2, 1), bool))
    site = mijax.Site("resid_post", layer=2, position=2)
    stated = causal.stated(causal.blocks(32, (32,)), site)
    with pytest.raises(ShapeError, match=match):
        causal.iia(model, stated, data)


def test_sources_of_other_lengths_are_refused(unchecked):
    model = testing.tiny_gpt2(jax.random.key(0))
    tokens = jnp.array([[5, 6, 7], [8, 9, 10]])
    label, swapped = jnp.array([3, 4]), jnp.ones((2, 1), bool)
    data = Counterfactuals(tokens, tokens[::-1, None, 1:], swapped, label)
    site = mijax.Site("resid_post", layer=2, position=2)
    stated = causal.stated(causal.blocks(32, (32,)), site)
    with pytest.raises(ShapeError, match="one shape"):
        causal.iia(model, stated, data)
