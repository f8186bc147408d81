"""Pairs are chosen together, stay aligned, and measure themselves."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax._errors import PositionError
from mijax.data import Pairs, Prompts

ROWS = [[1, 2, 3], [4, 5], [6, 7, 8], [9, 10], [11, 12, 13], [14]]


def make(**fields):
    given = {
        "clean": Prompts.from_ids(ROWS, pad=63),
        "corrupt": Prompts.from_ids([[20, *row[1:]] for row in ROWS]),
        "answer": jnp.arange(6),
        "wrong": jnp.array([[i + 7, -1 if i % 2 else i + 8] for i in range(6)]),
        "group": jnp.array([0, 1, 0, 1, 0, 2]),
    }
    return Pairs(**given | fields)


@pytest.mark.parametrize(
    "index", [3, -1, slice(1, 4), [5, 0], np.array([1]), jnp.array([2, 2])]
)
def test_all_fields_are_chosen_together(index):
    pairs, part = make(), make()[index]
    rows = np.atleast_1d(np.arange(6)[index])
    assert len(part) == len(rows)
    for field in ("answer", "wrong", "group"):
        np.testing.assert_array_equal(getattr(part, field), getattr(pairs, field)[rows])
    for field in ("clean", "corrupt"):
        whole, few = getattr(pairs, field), getattr(part, field)
        np.testing.assert_array_equal(few.tokens, whole.tokens[rows])
        np.testing.assert_array_equal(few.last, whole.last[rows])


def test_masks_choose_and_ends_end():
    pairs = make()
    assert pairs[pairs.group == 1].answer.tolist() == [1, 3]
    assert [int(pair.answer[0]) for pair in pairs] == list(range(6))
    with pytest.raises(IndexError):
        pairs[6]


def test_of_length():
    pairs = make()
    for wanted, kept in ((None, [0, 2, 4]), (2, [1, 3]), (1, [5])):
        part = pairs.of_length(wanted)
        assert part.answer.tolist() == kept
        assert part.group.tolist() == pairs.group[jnp.array(kept)].tolist()
        assert part.clean.tokens.tolist() == [ROWS[i] for i in kept]
        assert part.corrupt.tokens[:, 1:].tolist() == [ROWS[i][1:] for i in kept]
        assert part.clean.mask.all()
    tie = make()[1:4][:2].of_length()
    assert tie.clean.tokens.shape == (1, 2)
    with pytest.raises(PositionError, match="4 tokens; there are prompts of 1, 2, 3"):
        pairs.of_length(4)


def test_metrics_read_the_last_token():
    pairs = make()
    logits = jax.random.normal(jax.random.key(0), (6, 3, 64))
    last = np.asarray(logits)[np.arange(6), np.asarray(pairs.clean.last)]
    p = np.asarray(jax.nn.softmax(last, axis=-1))
    wrong = [[w for w in row if w >= 0] for row in pairs.wrong.tolist()]
    best = [last[i, i] - last[i, w].max() for i, w in enumerate(wrong)]
    more = [p[i, i] - p[i, w].sum() for i, w in enumerate(wrong)]
    found = pairs.logit_difference()(logits)
    chex.assert_trees_all_close(found, jnp.array(best), atol=1e-6)
    found = pairs.probability_difference()(logits)
    chex.assert_trees_all_close(found, jnp.array(more), atol=1e-6)


def test_metrics_of_pairs_drive_a_sweep():
    model = mijax.testing.tiny_gpt2(jax.random.key(0))
    pairs = mijax.data.induction(64, 3, length=4)
    metric = pairs.probability_difference()
    acts = mijax.capture(model, pairs.clean.tokens, mijax.Site("z"))
    patch = mijax.Patch(acts)
    grid = mijax.sweep(
        model, pairs.corrupt.tokens, patch.at("z"), over=("head",), metric=metric
    )
    one = metric(mijax.run(model, pairs.corrupt.tokens, patch.at("z", head=2)))
    chex.assert_trees_all_close(grid.values[:, 2], one, atol=1e-5)


def test_pairs_are_trees():
    pairs = make()
    doubled = jax.tree.map(lambda x: x * 2, pairs)
    assert doubled.answer.tolist() == [0, 2, 4, 6, 8, 10]
    assert jax.jit(lambda p: p.clean.last)(pairs).tolist() == [2, 1, 2, 1, 2, 0]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"corrupt": Prompts.from_ids([[1]] * 6)}, "Prompt 0 has 3 tokens"),
        ({"corrupt": Prompts.from_ids(ROWS[:5])}, "6 clean prompts and 5"),
    ],
)
def test_refuses_what_is_not_aligned(fields, says):
    with pytest.raises(PositionError, match=says):
        make(**fields)


def test_refuses_too_few_answers():
    # Turned off, as for users: the shapes are checked before in tests.
    import jaxtyping  # noqa: PLC0415

    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(PositionError, match="6 prompts and 5 entries of 'group'"):
            make(group=jnp.zeros(5, jnp.int32))
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
