"""Rewritten facts: laws on any model and on a linear associative memory."""

import cases
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiles import compiles

import mijax
from mijax.editing import (
    MEMIT,
    ROME,
    AlphaEdit,
    AveragedKey,
    Contexts,
    Covariance,
    Requests,
    Uncorrected,
    ValueSearch,
    covariance,
    rewrite,
    rewrite_each,
)

TOKENS = jax.random.randint(jax.random.key(1), (30, 12), 0, 64)
SEARCH = ValueSearch(steps=6)
# Two contexts and the third prompt; the target of the second fact has two tokens.
PROMPTS = [
    [[5, 6, 7, 8], [20, 21, 5, 6, 7, 8], [6, 3, 4]],
    [[9, 10, 11], [22, 9, 10, 11], [10, 3, 4]],
]
LOOKUP = [[1, 3, 0], [1, 2, 0]]
TARGETS = [[33], [41, 42]]
FACTS = Requests.from_ids(PROMPTS, LOOKUP, TARGETS)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    return cases.model(name)


@pytest.fixture(scope="module")
def moments(model):
    return covariance(model, TOKENS, layers=[0, 1])


def after_edit(model, edit, site, layer, fact=0, context=0):
    at = mijax.Site(site, layer=layer, position=LOOKUP[fact][context])
    return mijax.capture(edit.apply(model), jnp.array(PROMPTS[fact][context]), at)


def test_the_key_gets_its_value(model, moments):
    found = rewrite(model, FACTS[:1], method=ROME(1, moments, search=SEARCH))
    after = after_edit(model, found.edit, "mlp_out", 1)
    np.testing.assert_allclose(after, found.values.value[0], rtol=1e-4, atol=1e-4)
    assert [c.delta.rank() for c in found.edit.changes] == [1]


def test_averaged_key(model, moments):
    method = ROME(1, moments, search=SEARCH, key=AveragedKey())
    found = rewrite(model, FACTS[:1], method=method)
    outs = [after_edit(model, found.edit, "mlp_out", 1, context=c) for c in (0, 1)]
    # The MLP's last map is linear, so the average of its outputs is that of its keys.
    np.testing.assert_allclose(
        (outs[0] + outs[1]) / 2, found.values.value[0], rtol=1e-4, atol=1e-4
    )


def test_least_change_of_other_keys(model, moments):
    """The closed form of constrained least squares, by a pseudo-inverse."""
    method = ROME(1, moments, Contexts((("{}",),)), SEARCH)
    prompts = [[PROMPTS[0][0], PROMPTS[0][2]]]
    facts = Requests.from_ids(prompts, [[1, 0]], TARGETS[:1])
    found = rewrite(model, facts, method=method)
    delta = np.asarray(found.edit.changes[0].delta.dense(), np.float64)
    at = mijax.Site("mlp_post", layer=1, position=1)
    key = np.asarray(mijax.capture(model, jnp.array(PROMPTS[0][0]), at), np.float64)
    missing = np.asarray(found.values.delta[0], np.float64)
    values, vectors = np.linalg.eigh(moments.at(1).astype(np.float64))
    half = (vectors * values**-0.5) @ vectors.T
    expected = half @ np.linalg.pinv((key @ half)[None]) @ missing[None]
    scale = np.abs(expected).max()
    np.testing.assert_allclose(delta, expected, atol=1e-4 * scale)

    # Any other delta that gives the key its value costs more.
    def cost(d):
        return np.trace(d.T @ moments.at(1) @ d)

    other = np.random.default_rng(0).normal(size=delta.shape)
    other -= np.outer(key, key @ other) / (key @ key)
    for step in (0.01, -0.01):
        assert cost(expected + step * other) > cost(expected)
    plain = rewrite(model, facts, method=ROME(1, Uncorrected(), search=SEARCH))
    np.testing.assert_allclose(
        plain.edit.changes[0].delta.dense(),
        np.outer(key, missing) / (key @ key),
        atol=1e-4 * scale,
    )


def test_the_search_reports_its_own_loss(model, moments):
    found = rewrite(model, FACTS[1:], method=ROME(1, moments, search=SEARCH))
    add = mijax.Add(found.values.delta[0])

    def by_hand(edits):
        likely = []
        for context in (0, 1):
            tokens = jnp.array([*PROMPTS[1][context], *TARGETS[1][:-1]])
            edit = add.at("mlp_out", layer=1, position=LOOKUP[1][context])
            logits = jax.nn.log_softmax(
                mijax.run(model, tokens, edit if edits else None)
            )
            likely.append((logits[-2, 41] + logits[-1, 42]) / 2)
        return -sum(likely) / 2, (jnp.exp(likely[0]) + jnp.exp(likely[1])) / 2

    def after(edits):
        edit = add.at("mlp_out", layer=1, position=0) if edits else None
        return jax.nn.log_softmax(mijax.run(model, jnp.array([10, 3, 4]), edit)[0])

    losses = found.values.losses[0]
    np.testing.assert_allclose(losses[0], [by_hand(False)[0], 0, 0], atol=1e-4)
    last = losses[int(found.values.steps[0]) - 1]
    new, old = after(True), after(False)
    divergence = 0.0625 * (jnp.exp(new) * (new - old)).sum()
    size = jnp.linalg.norm(found.values.initial[0])
    norm = 0.5 * jnp.linalg.norm(found.values.delta[0]) / size**2
    nll, probability = by_hand(True)
    np.testing.assert_allclose(last, [nll, divergence, norm], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.values.probability[0], probability, rtol=1e-3)
    assert last.sum() < losses[0].sum()


def test_clamp_and_stop(model, moments):
    def values(**given):
        method = ROME(1, moments, search=ValueSearch(**given))
        return rewrite(model, FACTS[:1], method=method).values

    short = values(steps=6, clamp=0.1)
    size = jnp.linalg.norm(short.initial[0])
    np.testing.assert_allclose(jnp.linalg.norm(short.delta[0]), 0.1 * size, rtol=1e-5)
    long = values(steps=6)
    total = long.losses[0].sum(-1)
    # A bound just above the loss of step 3 ends there.
    assert (total[:3] > total[3]).all()
    early = values(steps=6, stop=float(total[3]) + 1e-3)
    assert early.steps.tolist() == [4]
    assert jnp.isnan(early.losses[0, 4:]).all()
    np.testing.assert_allclose(early.delta, values(steps=4).delta, rtol=1e-5, atol=1e-6)


def test_batch_is_loop_and_padding_changes_nothing(model, moments):
    method = ROME(1, moments, search=SEARCH)
    both = rewrite_each(model, FACTS, method=method, batch=2)
    for i, edit in enumerate(both):
        lone = Requests.from_ids(PROMPTS[i : i + 1], LOOKUP[i : i + 1], [TARGETS[i]])
        (alone,) = rewrite_each(model, lone, method=method)
        for part in ("left", "right"):
            found, expected = (getattr(e.changes[0].delta, part) for e in (edit, alone))
            scale = float(jnp.abs(expected).max())
            np.testing.assert_allclose(found, expected, atol=1e-4 * scale)
    # One after the other, each on the model with those before.
    joined = rewrite(model, FACTS, method=method)
    second = rewrite(joined.parts[0].apply(model), FACTS[1:], method=method)
    assert eqx.tree_equal(joined.parts[1], second.edit)
    assert eqx.tree_equal(
        joined.parts[0], rewrite(model, FACTS[:1], method=method).edit
    )


def test_memit_is_weighted_least_squares(model, moments):
    method = MEMIT([0, 1], moments, 2.0, search=SEARCH)
    keys = np.random.default_rng(0).normal(size=(moments.moments.shape[-1], 3))
    missing = np.random.default_rng(1).normal(size=(3, 5))
    delta = method.solve(1, keys) @ missing
    values, vectors = np.linalg.eigh(moments.at(1).astype(np.float64))
    root = (vectors * np.sqrt(2 * np.maximum(values, 0))) @ vectors.T
    stacked = np.concatenate([root, keys.T])
    goal = np.concatenate([np.zeros((len(root), 5)), missing])
    expected = np.linalg.lstsq(stacked, goal, rcond=None)[0]
    np.testing.assert_allclose(delta, expected, atol=1e-6 * np.abs(expected).max())


def test_memit_reaches_its_values(model, moments):
    """With one context and hardly any weight on old keys, each layer does its part."""
    prompts = [[each[0], each[2]] for each in PROMPTS]
    facts = Requests.from_ids(prompts, [[1, 0], [1, 0]], TARGETS)
    found = rewrite(model, facts, method=MEMIT([0, 1], moments, 1e-6, search=SEARCH))
    for i in range(2):
        after = after_edit(model, found.edit, "resid_post", 1, fact=i)
        np.testing.assert_allclose(after, found.values.value[i], rtol=2e-3, atol=2e-3)
    half = rewrite(model, facts, method=MEMIT([1], moments, 1e-6, search=SEARCH))
    at = mijax.Site("resid_post", layer=1, position=1)
    first = found.parts[0].apply(model)
    before, now = (
        mijax.capture(m, jnp.array(PROMPTS[0][0]), at) for m in (model, first)
    )
    goal = half.values.value[0]
    # Layer 0 moves its own output by half of the way; what later layers make of it
    # differs, and the last layer closes the rest.
    assert jnp.linalg.norm(goal - now) != jnp.linalg.norm(goal - before)
    out = mijax.Site("mlp_out", layer=0, position=1)
    moved = [mijax.capture(m, jnp.array(PROMPTS[0][0]), out) for m in (model, first)]
    np.testing.assert_allclose(
        moved[1] - moved[0], (goal - before) / 2, rtol=2e-3, atol=2e-3
    )


def test_alphaedit_leaves_common_keys(model, moments):
    method = AlphaEdit.of(moments, [0, 1], fraction=0.5, ridge=0.01, search=SEARCH)
    found = rewrite(model, FACTS, method=method)
    for change, free in zip(found.edit.changes, method.projections, strict=True):
        delta = np.asarray(change.delta.dense(), np.float64)
        common = np.eye(len(free)) - free
        assert np.abs(common @ delta).max() < 1e-4 * np.abs(delta).max()
        assert np.abs(free @ delta).max() > 0.9 * np.abs(delta).max()


def test_alphaedit_in_turn_is_at_once(model, moments):
    """On a linear memory, for keys in the null space and hardly any ridge."""
    method = AlphaEdit.of(moments, [1], fraction=0.5, ridge=1e-8)
    random = np.random.default_rng(0)
    keys, goals = (
        random.normal(size=(moments.moments.shape[-1], 6)),
        random.normal(size=(6, 5)),
    )
    keys = method.projections[0] @ keys
    memory = random.normal(size=(len(keys), 5))
    at_once = method.solve(1, keys) @ (goals - keys.T @ memory)
    in_turn = np.zeros_like(at_once)
    for part in (slice(0, 2), slice(2, 4), slice(4, 6)):
        few = keys[:, part]
        missing = goals[part] - few.T @ (memory + in_turn)
        in_turn += method.solve(1, few) @ missing
        method = method.after([few])
    np.testing.assert_allclose(in_turn, at_once, atol=1e-5 * np.abs(at_once).max())
    np.testing.assert_allclose(keys.T @ (memory + in_turn), goals, atol=1e-5)
    # Without the keys of the past, later facts overwrite earlier ones.
    fresh = AlphaEdit.of(moments, [1], fraction=0.5, ridge=1e-8)
    forgot = fresh.solve(1, keys[:, :2]) @ (goals[:2] - keys[:, :2].T @ memory)
    missing = goals[2:] - keys[:, 2:].T @ (memory + forgot)
    forgot = forgot + fresh.solve(1, keys[:, 2:]) @ missing
    assert np.abs(keys[:, :2].T @ (memory + forgot) - goals[:2]).max() > 0.1


def test_alphaedit_remembers_keys(model, moments):
    method = AlphaEdit.of(moments, [1], fraction=0.5, search=SEARCH)
    found = rewrite(model, FACTS, method=method)
    edited = found.edit.apply(model)
    rows = []
    for fact in (0, 1):
        each = [
            mijax.capture(
                edited,
                jnp.array(PROMPTS[fact][c]),
                mijax.Site("mlp_post", layer=1, position=LOOKUP[fact][c]),
            )
            for c in (0, 1)
        ]
        rows.append(np.mean(each, axis=0))
    expected = np.stack(rows).T @ np.stack(rows)
    np.testing.assert_allclose(found.method.past[0], expected, rtol=1e-3, atol=1e-4)


def test_published_settings(moments):
    xl = Covariance(np.eye(4, dtype=np.float32)[None], (17,), 9, ("",))
    rome = ROME.published("gpt2-xl", xl)
    assert (rome.layer, rome.search, len(rome.contexts.texts)) == (
        17,
        ValueSearch(),
        21,
    )
    assert ROME.published("gpt2-medium", xl).search.clamp == 3
    memit = MEMIT.published("gpt-j-6b", xl)
    assert memit.layers == (3, 4, 5, 6, 7, 8)
    assert (memit.weight, memit.search.steps, memit.search.clamp) == (15_000, 25, 0.75)
    for method in (ROME, MEMIT, AlphaEdit):
        with pytest.raises(mijax.MijaxError, match="Did you mean 'gpt2-xl'"):
            method.published("gpt2xl", xl)


def test_one_program_for_other_facts(no_programs):
    model = cases.model("gpt2")
    method = ROME(1, Uncorrected(), search=SEARCH)
    rewrite(model, FACTS[:1], method=method)
    other = Requests.from_ids(
        [[[4, 5, 6, 7], [8, 4, 5, 6, 7], [5, 3]]], [[1, 2, 0]], [[50, 2]]
    )
    with compiles() as found:
        rewrite(model, other, method=method)
    assert found == []
