"""Inputs that would give wrong numbers if they were taken: each is refused or right."""

import dataclasses

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax import circuits
from mijax._errors import PositionError, ShapeError, SiteError
from mijax.core import AbstractEdit, Chunks

RANDOM = np.random.default_rng(0)
CLEAN, CORRUPT = (jnp.array(RANDOM.integers(1, 60, (5, 8))) for _ in "ab")
METRIC = mijax.logit_difference(3, 4)
MODEL = mijax.testing.tiny_gpt2(jax.random.key(0))
ACTS = mijax.capture(MODEL, CORRUPT, mijax.Site("resid_pre"))


def sweep(tokens=CLEAN, edit=None, *, model=MODEL, metric=METRIC, **options):
    edit = mijax.Patch(ACTS).at("resid_pre") if edit is None else edit
    options = {"over": ("layer",)} | options
    return mijax.sweep(model, tokens, edit, metric=metric, **options)


@pytest.mark.parametrize(
    ("edit", "first", "second"),
    [
        (mijax.Zero().at("z", layer=1), {"head": [0, 1]}, {"head": [2, 3]}),
        (
            mijax.Add(jnp.ones(32)).at("resid_pre", layer=1),
            {"coefficient": [1, 2]},
            {"coefficient": [10, 20]},
        ),
        (
            mijax.Zero().at("resid_pre", layer=1),
            {"feature": [0, 1]},
            {"feature": [5, 6]},
        ),
        (
            mijax.Zero().at("resid_pre", layer=1),
            {"position": [slice(2, 4)]},
            {"position": [slice(2, 7)]},
        ),
    ],
)
def test_a_sweep_of_other_values_is_not_resumed(edit, first, second, tmp_path):
    chunks = Chunks(resume=str(tmp_path / "sweep.npz"))
    sweep(edit=edit, over=first, chunks=chunks)
    with pytest.raises(mijax.MijaxError, match="another sweep"):
        sweep(edit=edit, over=second, chunks=chunks)


def part(**index):
    return mijax.capture(MODEL, CORRUPT, mijax.Site("resid_pre", **index))


@pytest.mark.parametrize(
    ("source", "place"),
    [
        (part(layer=2), {"layer": 2}),
        (part(layer=np.array([1, 2])), {"layer": 1}),
        (part(position=slice(3, 5)), {"position": slice(3, 5)}),
        (ACTS[:3], {"layer": 1}),
    ],
)
def test_a_source_of_other_prompts_or_a_part_is_refused(source, place):
    with pytest.raises(ShapeError, match="whole site"):
        mijax.run(MODEL, CLEAN, mijax.Patch(source).at("resid_pre", **place))


def test_a_mean_of_some_layers_is_refused():
    some = mijax.Mean(part(layer=np.array([1, 2]))).at("resid_pre", layer=1)
    with pytest.raises(ShapeError, match="whole site"):
        mijax.run(MODEL, CLEAN, some)


def test_a_single_prompt_has_no_source_or_metric_of_a_batch():
    with pytest.raises(ShapeError, match="5 prompts"):
        sweep(CLEAN[2])
    three = mijax.logit_difference(np.arange(3), np.arange(3, 6))
    one = mijax.Patch(ACTS[2]).at("resid_pre")
    with pytest.raises(ShapeError, match="3 prompts"):
        sweep(CLEAN[2], one, metric=three)


@pytest.mark.parametrize("position", [-1, [-1, 0, 0, 0, 0]])
def test_a_metric_has_no_negative_position(position):
    with pytest.raises(PositionError, match=r"prompts\.last"):
        mijax.logit_difference(3, 4, position=position)


METRICS = {
    ShapeError: mijax.logit_difference(np.arange(3), np.arange(3, 6)),
    PositionError: mijax.logit_difference(3, 4, position=99),
}
USES = {
    "call": lambda metric: metric(mijax.run(MODEL, CLEAN)),
    "sweep": lambda metric: sweep(metric=metric),
    "gradients": lambda metric: mijax.gradients(
        MODEL, CLEAN, metric, mijax.Site("resid_pre")
    ),
    "task": lambda metric: circuits.Task(CLEAN, CORRUPT, metric=metric),
    "negative": lambda metric: circuits.Task(
        CLEAN, CORRUPT, metric=mijax.negative(metric)
    ),
}


@pytest.mark.parametrize("error", METRICS)
@pytest.mark.parametrize("use", USES)
def test_a_metric_of_other_prompts_is_refused(use, error):
    with pytest.raises(error, match="metric"):
        USES[use](METRICS[error])


def test_a_reference_of_other_prompts_is_refused():
    logits = mijax.run(MODEL, CLEAN)
    with pytest.raises(ShapeError, match="reference for 3 prompts"):
        mijax.kl(logits[:3])(logits)
    assert mijax.kl(logits[0])(logits).shape == (5,)


@pytest.mark.parametrize(
    "edit",
    [
        mijax.Zero().at("pattern", layer=1, feature=mijax.PerPrompt([1, 2])),
        mijax.Scale(mijax.PerPrompt([1.0, 2.0])).at("z"),
        mijax.Set(mijax.PerPrompt(jnp.ones((2, 32)))).at("embed"),
        mijax.Add(jnp.ones(32), mijax.PerPrompt(np.arange(3.0))).at("resid_pre"),
    ],
)
def test_lists_that_are_not_one_per_prompt_are_refused(edit):
    with pytest.raises(SiteError, match="one per prompt"):
        mijax.run(MODEL, CLEAN, edit)


def test_ends_of_spans_are_one_per_prompt():
    edit = mijax.Zero().at("z", position=slice(0, np.array([3, 4])))
    with pytest.raises(PositionError, match="position of shape"):
        mijax.run(MODEL, CLEAN, edit)


def test_a_sweep_of_a_model_that_is_not_causal_edits_after_what_is_read():
    attention = dataclasses.replace(MODEL.blocks.attention, causal=False)
    blocks = dataclasses.replace(MODEL.blocks, attention=attention)
    model = dataclasses.replace(MODEL, blocks=blocks)
    metric = mijax.logit_difference(3, 4, position=2)
    edit = mijax.Zero().at("resid_pre", layer=1)
    found = sweep(edit=edit, model=model, metric=metric, over=("position",))
    for position in range(8):
        one = mijax.Zero().at("resid_pre", layer=1, position=position)
        expected = metric(mijax.run(model, CLEAN, one))
        chex.assert_trees_all_close(found.values[:, position], expected, atol=1e-4)


@pytest.mark.parametrize("span", [slice(0, -1), slice(-2, 8), slice(0, 8, 2), -1])
def test_swept_spans_are_those_of_an_edit(span):
    edit = mijax.Zero().at("resid_pre", layer=1)
    with pytest.raises(PositionError):
        sweep(edit=edit, over={"position": [span]})


def test_swept_positions_may_repeat():
    edit = mijax.Zero().at("resid_pre", layer=1)
    values = sweep(edit=edit, over={"position": [3, 3, 4]}).values
    chex.assert_trees_all_equal(values[:, 0], values[:, 1])
    assert values.shape == (5, 3)


def test_metrics_sum_in_float32():
    x = jax.random.normal(jax.random.key(1), (1, 50_000)) * 3
    y = x + 0.02 * jax.random.normal(jax.random.key(2), x.shape)
    x, y = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
    wide = [a.astype(jnp.float32) for a in (x, y)]
    chex.assert_trees_all_close(mijax.kl(x)(y), mijax.kl(wide[0])(wide[1]))
    half = jax.tree.map(
        lambda a: (
            a.astype(jnp.bfloat16) if jnp.issubdtype(a.dtype, jnp.floating) else a
        ),
        MODEL,
    )
    assert sweep(model=half).values.dtype == jnp.float32
    task = circuits.Task(CLEAN, CORRUPT, metric=METRIC)
    full = circuits.Circuit.full(circuits.Graph.of(half))
    assert circuits.run_circuits(half, task, full).dtype == np.float32


def test_an_ablation_of_another_graph_is_refused():
    split = circuits.Graph.of(MODEL, split_input=True)
    plain = circuits.Circuit.full(circuits.Graph.of(MODEL)).without("a1.h0")
    mean = circuits.mean_ablation(MODEL, CLEAN, graph=split)
    task = circuits.Task(CLEAN, metric=METRIC, ablation=mean)
    with pytest.raises(ShapeError, match="same graph"):
        circuits.run_circuits(MODEL, task, plain)
    with pytest.raises(ShapeError, match="ablation"):
        circuits.Task(CLEAN, metric=METRIC, ablation=mijax.Zero())


def test_prompts_beyond_the_context_or_the_vocabulary_are_refused():
    with pytest.raises(PositionError, match="context of 32"):
        mijax.run(MODEL, jnp.ones(40, int))
    with pytest.raises(ShapeError, match="vocabulary of 64"):
        mijax.run(MODEL, [1, 2, 99])
    with pytest.raises(ShapeError, match="count from 0"):
        mijax.run(MODEL, [1, -1])
    with pytest.raises(ShapeError, match="one length"):
        mijax.run(MODEL, [[1, 2, 3], [4, 5]])


@pytest.mark.parametrize("metric", [mijax.probability, mijax.cross_entropy])
def test_token_ids_of_metrics_count_from_0(metric):
    with pytest.raises(ShapeError, match="starting at 0"):
        metric(-1)


def test_nobody_reads_a_token_and_nobody_the_future():
    knockout = mijax.Set(-jnp.inf).at("scores", layer=0, feature=0)
    one, two = (mijax.run(MODEL, [5, 6, 7, x], knockout) for x in (8, 50))
    chex.assert_trees_all_close(one[:3], two[:3], atol=1e-5)


def test_scores_may_all_be_cut_off():
    """What nothing is read by writes nothing, the last token too."""
    site = mijax.Site("pattern", layer=1)
    off = mijax.Set(-jnp.inf).at("scores", layer=1, head=0)
    pattern = mijax.capture(MODEL, CLEAN[0], site, off)
    chex.assert_trees_all_equal(pattern[:, 0], jnp.zeros((8, 8)))
    ablated = mijax.run(MODEL, CLEAN[0], mijax.Zero().at("z", layer=1, head=0))
    chex.assert_trees_all_close(mijax.run(MODEL, CLEAN[0], off), ablated, atol=1e-5)
    slope = mijax.gradients(MODEL, CLEAN[0], METRIC, mijax.Site("embed"), off)
    assert jnp.isfinite(slope).all()


def test_means_of_half_precision_are_means():
    acts = jnp.full((64, 3, 1024, 4), 1.5, jnp.float16)
    mean = mijax.Mean(acts).over(True, ("position", "feature"))
    chex.assert_trees_all_equal(mean, jnp.full((3, 1, 4), 1.5, jnp.float32))


class Twice(AbstractEdit):
    coefficient: float = 2.0

    def __call__(self, x, place):
        return x * self.coefficient


class Named(type(MODEL)):
    vocab: tuple[str, ...] = eqx.field(static=True, default=("a", "b"))


def test_names_of_ones_own_mean_what_they_mean():
    own = mijax.run(MODEL, CLEAN, Twice().at("z"))
    chex.assert_trees_all_close(own, mijax.run(MODEL, CLEAN, mijax.Scale(2).at("z")))
    fields = {f.name: getattr(MODEL, f.name) for f in dataclasses.fields(MODEL)}
    chex.assert_trees_all_equal(
        mijax.run(Named(**fields), CLEAN), mijax.run(MODEL, CLEAN)
    )


def test_indices_may_be_lists_of_what_is_traced():
    logits = mijax.run(MODEL, CLEAN)

    @jax.jit
    def both(i):
        places = mijax.logit_difference(3, 4, position=[i, 2, 3, 4, 5])
        labels = mijax.cross_entropy([i, 2, 3, 4, 5])
        return places(logits), labels(logits)

    at = mijax.logit_difference(3, 4, position=[1, 2, 3, 4, 5])
    expected = at(logits), mijax.cross_entropy([1, 2, 3, 4, 5])(logits)
    chex.assert_trees_all_close(both(1), expected, atol=1e-5)


def test_tokens_and_logits_of_another_kind_are_refused():
    for tokens in (np.array([2**32 + 5, 1]), [2**70, 1]):
        with pytest.raises(ShapeError):
            mijax.run(MODEL, tokens)
    with pytest.raises(ShapeError, match=r"\(1, 5, 8, 64\)"):
        METRIC(mijax.run(MODEL, CLEAN)[None])


def test_a_source_may_be_short_where_only_what_it_has_is_patched():
    short = mijax.Patch(ACTS[:, :, :5]).at
    found = mijax.run(MODEL, CLEAN, short("resid_pre", layer=1, position=4))
    full = mijax.Patch(ACTS).at("resid_pre", layer=1, position=4)
    chex.assert_trees_all_equal(found, mijax.run(MODEL, CLEAN, full))
    for position in (5, slice(3, 6), slice(3, None), None):
        with pytest.raises(ShapeError, match="whole site"):
            mijax.run(MODEL, CLEAN, short("resid_pre", position=position))
    with pytest.raises(ShapeError, match="whole site"):
        mijax.run(MODEL, CLEAN[:, :5], mijax.Patch(ACTS).at("resid_pre"))


def test_directions_that_depend_on_each_other_are_refused():
    d = jnp.arange(1.0, 33)
    for directions in (jnp.stack([d, -d]), jnp.zeros(32), jnp.ones((3, 2))):
        with pytest.raises(ShapeError, match="independent"):
            mijax.Project(directions)
    half = mijax.Project(d.astype(jnp.bfloat16)).basis
    chex.assert_trees_all_close(half, mijax.Project(list(range(1, 33))).basis)


def test_spans_may_end_where_the_prompt_does():
    whole = mijax.capture(MODEL, CLEAN, mijax.Site("resid_pre"))
    site = mijax.Site("resid_pre", position=slice(2, 8))
    chex.assert_trees_all_equal(mijax.capture(MODEL, CLEAN, site), whole[:, :, 2:])
    with pytest.raises(PositionError):
        mijax.capture(MODEL, CLEAN, mijax.Site("resid_pre", position=slice(2, 9)))
    each = mijax.Site("resid_pre", position=slice(np.arange(5), None))
    with pytest.raises(PositionError, match="fixed integers"):
        mijax.gradients(MODEL, CLEAN, METRIC, each)
