"""A sweep equals a plain loop of single patched runs, whatever it skips."""

import itertools

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import (
    BLOCK_CASES,
    CLEAN,
    CORRUPT,
    HEAD_CASES,
    LAST,
    LENGTHS,
    METRIC,
    METRICS,
    acts_of,
    edits,
    model,
)
from compiles import compiles

import mijax
import mijax.core._sweep as sweep_module
from mijax._errors import OutputError, PositionError, SiteError
from mijax.core._plan import Cost, Lanes, Plan, pack

TOLERANCE = 2e-5


def loop(name, edit, site, axes, *, tokens=CORRUPT, metric=METRIC, fixed=None):
    """Runs every cell alone; `axes` maps names to lists of values."""
    values = []
    for cell in itertools.product(*axes.values()):
        place = dict(zip(axes, cell, strict=True)) | (fixed or {})
        coefficient = place.pop("coefficient", None)
        one = edit
        if coefficient is not None:
            one = eqx.tree_at(lambda e: e.coefficient, edit, jnp.asarray(coefficient))
        values.append(metric(mijax.run(model(name), tokens, one.at(site, **place))))
    shape = (len(tokens), *(len(v) for v in axes.values()))
    return jnp.stack(values, 1).reshape(shape)


@pytest.mark.parametrize(("name", "site"), BLOCK_CASES)
def test_layer_by_position_equals_loop(name, site):
    patch = mijax.Patch(acts_of(name, site))
    layers = model(name).n_layers
    found = mijax.sweep(
        model(name),
        CORRUPT,
        patch.at(site),
        over=("layer", "position"),
        metric=METRIC,
    )
    axes = {"layer": range(layers), "position": range(7)}
    chex.assert_trees_all_close(
        found.values, loop(name, patch, site, axes), atol=TOLERANCE
    )
    chex.assert_trees_all_close(
        found.base, METRIC(mijax.run(model(name), CORRUPT)), atol=TOLERANCE
    )
    # Positions before the first difference, or after the last token, are not run.
    assert found.work.run <= layers * (5 + 2 + 7) or site == "scores"
    assert found.work.lanes == found.values.size


@pytest.mark.parametrize(("name", "site"), HEAD_CASES)
def test_head_by_layer_equals_loop_noising(name, site):
    patch = mijax.Patch(acts_of(name, site, CORRUPT))
    axes = {"head": range(4), "layer": range(model(name).n_layers)}
    found = mijax.sweep(
        model(name), CLEAN, patch.at(site), over=tuple(axes), metric=METRIC
    )
    expected = loop(name, patch, site, axes, tokens=CLEAN)
    chex.assert_trees_all_close(found.values, expected, atol=TOLERANCE)
    assert [a.name for a in found.axes] == ["head", "layer"]


@pytest.mark.parametrize("kind", edits("llama", "z"))
@pytest.mark.parametrize("site", ["z", "resid_pre"])
def test_every_edit_equals_loop(kind, site):
    edit = edits("llama", site)[kind]
    axes = {"layer": [2, 0], "position": [0, 3, 4]}
    found = mijax.sweep(
        model("llama"), CORRUPT, edit.at(site), over=axes, metric=METRIC
    )
    expected = loop("llama", edit, site, axes)
    chex.assert_trees_all_close(found.values, expected, atol=TOLERANCE)


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_equals_loop(metric):
    patch = mijax.Patch(acts_of("gpt2", "resid_pre"))
    axes = {"layer": range(3), "position": range(7)}
    found = mijax.sweep(
        model("gpt2"),
        CORRUPT,
        patch.at("resid_pre"),
        over=axes,
        metric=METRICS[metric],
    )
    expected = loop("gpt2", patch, "resid_pre", axes, metric=METRICS[metric])
    chex.assert_trees_all_close(found.values, expected, atol=TOLERANCE)


@pytest.mark.parametrize("metric", ["logit_difference", "cross_entropy"])
def test_memory_budget_changes_nothing(metric):
    patch = mijax.Patch(acts_of("llama", "z")).at("z")
    over = ("layer", "head", "position")
    every = {"over": over, "metric": METRICS[metric]}
    whole = mijax.sweep(model("llama"), CORRUPT, patch, **every)
    for memory in (30_000, 100_000):
        chunks = mijax.Chunks(memory=memory)
        found = mijax.sweep(model("llama"), CORRUPT, patch, chunks=chunks, **every)
        chex.assert_trees_all_close(found.values, whole.values, atol=TOLERANCE)
        assert found.work.row_layers == whole.work.row_layers
        assert found.work.chunks > whole.work.chunks


def test_embedding_steering_and_coefficients():
    direction = jax.random.normal(jax.random.key(2), (32,))
    for site in ("embed", "resid_post"):
        axes = {"coefficient": [0.0, 2.0, -1.5], "position": [0, 4]}
        if site != "embed":
            axes["layer"] = [0, 2]
        found = mijax.sweep(
            model("gpt2"),
            CORRUPT,
            mijax.Add(direction).at(site),
            over=axes,
            metric=METRIC,
        )
        expected = loop("gpt2", mijax.Add(direction), site, axes)
        chex.assert_trees_all_close(found.values, expected, atol=TOLERANCE)
        # Steering by zero is the identity: known, not run.
        same = jnp.broadcast_to(
            found.base.reshape(3, *(1,) * (found.values.ndim - 2)),
            found.values[:, 0].shape,
        )
        chex.assert_trees_all_equal(found.values[:, 0], same)


def test_named_positions_and_spans_per_prompt():
    patch = mijax.Patch(acts_of("gpt2", "resid_pre"))
    names = {
        "last": LAST,
        "middle": jnp.array([2, 3, 4]),
        "subject": slice(jnp.array([1, 2, 0]), jnp.array([3, 4, 5])),
        "all": slice(None),
    }
    found = mijax.sweep(
        model("gpt2"),
        CORRUPT,
        patch.at("resid_pre"),
        over={"position": names, "layer": [1]},
        metric=METRIC,
    )
    assert found.axes[0].labels == tuple(names)
    axes = {"position": list(names.values()), "layer": [1]}
    expected = loop("gpt2", patch, "resid_pre", axes)
    chex.assert_trees_all_close(found.values, expected, atol=TOLERANCE)


def test_fixed_indices_stay_fixed():
    patch = mijax.Patch(acts_of("llama", "v"))
    placed = patch.at("v", position=LAST - 2, head=1)
    over = {"layer": range(3)}
    found = mijax.sweep(model("llama"), CORRUPT, placed, over=over, metric=METRIC)
    fixed = {"position": LAST - 2, "head": 1}
    expected = loop("llama", patch, "v", over, fixed=fixed)
    chex.assert_trees_all_close(found.values, expected, atol=TOLERANCE)
    every = mijax.Zero().at("mlp_out", layer=1)
    found = mijax.sweep(model("llama"), CORRUPT, every, over="position", metric=METRIC)
    expected = loop(
        "llama", mijax.Zero(), "mlp_out", {"position": range(7)}, fixed={"layer": 1}
    )
    chex.assert_trees_all_close(found.values, expected, atol=TOLERANCE)


def test_per_prompt_coefficient_and_all_layers():
    scale = mijax.Scale(mijax.PerPrompt([0.5, -1.0, 2.0]))
    axes = {"position": range(7)}
    found = mijax.sweep(
        model("gpt2"), CORRUPT, scale.at("attn_out"), over=axes, metric=METRIC
    )
    expected = loop("gpt2", scale, "attn_out", axes)
    chex.assert_trees_all_close(found.values, expected, atol=TOLERANCE)


def test_single_prompt_equals_batch():
    patch = mijax.Patch(acts_of("gpt2", "z"))
    over = ("layer", "head")
    batch = mijax.sweep(model("gpt2"), CORRUPT, patch.at("z"), over=over, metric=METRIC)
    for i, n in enumerate(LENGTHS):
        acts = mijax.capture(model("gpt2"), CLEAN[i, :n], mijax.Site("z"))
        metric = mijax.logit_difference(int(METRIC.answer[i]), int(METRIC.wrong[i]))
        alone = mijax.sweep(
            model("gpt2"),
            CORRUPT[i, :n],
            mijax.Patch(acts).at("z"),
            over=over,
            metric=metric,
        )
        chex.assert_trees_all_close(alone.values, batch.values[i], atol=TOLERANCE)
        chex.assert_trees_all_close(alone.base, batch.base[i], atol=TOLERANCE)


def test_cells_that_change_nothing_are_known_bit_for_bit():
    patch = mijax.Patch(acts_of("gpt2", "resid_pre", CORRUPT))
    found = mijax.sweep(
        model("gpt2"),
        CORRUPT,
        patch.at("resid_pre"),
        over=("layer", "position"),
        metric=METRIC,
    )
    assert found.work.run == 0
    chex.assert_trees_all_equal(
        found.values, jnp.broadcast_to(found.base[:, None, None], (3, 3, 7))
    )


def test_one_program_per_shape_however_many_cells(monkeypatch):
    traced = chex.assert_max_traces(sweep_module.run_chunk_jit.__wrapped__, n=1)
    monkeypatch.setattr(sweep_module, "run_chunk_jit", eqx.filter_jit(traced))
    chex.clear_trace_counter()
    patch = mijax.Patch(acts_of("gpt2", "z")).at("z")
    for over in (
        {"layer": [0, 1, 2], "head": [0, 1, 2, 3], "position": range(7)},
        {"layer": [2, 1, 0], "head": [3, 2, 1, 0], "position": range(7)},
    ):
        mijax.sweep(
            model("gpt2"),
            CORRUPT,
            patch,
            over=over,
            metric=METRIC,
            chunks=mijax.Chunks(memory=100_000),
        )


def test_other_numbers_of_cells_share_a_program():
    tokens = jnp.tile(CORRUPT, (16, 1))
    edit = mijax.Zero().at("z")
    metric = mijax.logit_difference(4, 5, position=6)

    def swept(layers):
        over = {"layer": layers, "head": [0, 1, 2, 3]}
        return mijax.sweep(model("gpt2"), tokens, edit, over=over, metric=metric)

    whole = swept([0, 1, 2])
    with compiles() as found:
        some = swept([0, 2]), swept([1]), swept([2, 1])
    assert not found
    for part, at in zip(some, ([0, 2], [1], [2, 1]), strict=True):
        values = np.asarray(whole.values)[:, at]
        np.testing.assert_allclose(part.values, values, atol=1e-5)


def test_mesh_equals_single_device():
    mesh = jax.make_mesh((8,), ("lanes",))
    patch = mijax.Patch(acts_of("llama", "pattern")).at("pattern")
    every = {"over": ("layer", "head", "position"), "metric": METRIC}
    chunks = mijax.Chunks(memory=60_000)
    spread = mijax.sweep(
        model("llama"), CORRUPT, patch, mesh=mesh, chunks=chunks, **every
    )
    single = mijax.sweep(model("llama"), CORRUPT, patch, **every)
    assert spread.work.chunks > 8
    chex.assert_trees_all_close(spread.values, single.values, atol=TOLERANCE)


class Stop(Exception):
    pass


def test_interrupted_sweep_resumes_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(mijax.core._journal, "SECONDS_BETWEEN_SAVES", 0.0)
    patch = mijax.Patch(acts_of("gpt2", "z")).at("z")
    every = {"over": ("layer", "head", "position"), "metric": METRIC}
    chunks = mijax.Chunks(memory=60_000, resume=str(tmp_path / "sweep.npz"))

    def stop(done, total):
        if done > total / 2:
            raise Stop

    with pytest.raises(Stop):
        mijax.sweep(
            model("gpt2"), CORRUPT, patch, progress=stop, chunks=chunks, **every
        )
    seen = []
    again = mijax.sweep(
        model("gpt2"),
        CORRUPT,
        patch,
        progress=lambda *done: seen.append(done),
        chunks=chunks,
        **every,
    )
    whole = mijax.sweep(
        model("gpt2"), CORRUPT, patch, chunks=mijax.Chunks(memory=60_000), **every
    )
    chex.assert_trees_all_equal(again.values, whole.values)
    assert seen[0][0] > seen[0][1] / 2
    assert seen[-1][0] == seen[-1][1]
    # Finished: nothing is run again. Another sweep does not take its place.
    more = []
    mijax.sweep(
        model("gpt2"),
        CORRUPT,
        patch,
        progress=lambda *done: more.append(done),
        chunks=chunks,
        **every,
    )
    assert more == [seen[-1]]
    other = mijax.Scale(0.5).at("z")
    with pytest.raises(OutputError, match="another sweep"):
        mijax.sweep(model("gpt2"), CORRUPT, other, chunks=chunks, **every)
    # Another budget cuts the lanes elsewhere, even where tiles are the same.
    for memory in (120_000, 2**30):
        with pytest.raises(OutputError, match="memory budget"):
            mijax.sweep(
                model("gpt2"),
                CORRUPT,
                patch,
                chunks=chunks._replace(memory=memory),
                **every,
            )


@pytest.mark.parametrize(
    ("edit", "over", "error", "says"),
    [
        (mijax.Zero().at("z"), "layers", SiteError, "'layer'"),
        (mijax.Zero().at("z", layer=1), "layer", SiteError, "fixed layer"),
        (mijax.Zero().at("mlp_out"), "head", SiteError, "no heads"),
        (mijax.Zero().at("z"), {"layer": [3]}, SiteError, "0 to 2"),
        (mijax.Zero().at("z"), {"position": [7]}, PositionError, "7 tokens"),
        (mijax.Zero().at("z"), {"coefficient": [1.0]}, SiteError, "coefficient"),
        (mijax.Add(1.0).at("z"), "coefficient", SiteError, "coefficients"),
        (mijax.Zero().at("logits"), "position", SiteError, "after every layer"),
        (
            [mijax.Zero().at("z"), mijax.Zero().at("q")],
            "layer",
            SiteError,
            "one edit",
        ),
    ],
)
def test_refuses(edit, over, error, says):
    with pytest.raises(error, match=says) as caught:
        mijax.sweep(model("gpt2"), CORRUPT, edit, over=over, metric=METRIC)
    assert "\n" not in str(caught.value)


def test_plan_holds_every_lane_once_and_wastes_little():
    layer, start, prompt = (
        a.reshape(-1) for a in np.meshgrid(range(12), range(15), range(8))
    )
    lanes = Lanes(np.arange(layer.size), prompt, layer, start, 15 - start)
    cost = Cost(12, 3072, 50_000, 1_000_000, 24)
    plan = pack(lanes, cost, 2**30)
    assert sorted(np.concatenate([t.cell for t in plan.tiles])) == list(lanes.cell)
    for tile in plan.tiles:
        assert tile.length.sum() <= plan.rows
        assert len(tile.cell) <= plan.lanes
    need = ((12 - layer) * lanes.length).sum()
    done = sum((12 - t.layer.min()) * plan.rows for t in plan.tiles)
    assert done <= 1.02 * need


def test_the_first_chunk_is_one_tile():
    one = np.zeros(1, int)
    tile = Lanes(one, one, one, one, one + 3)
    plan = Plan([tile] * 13, per_chunk=4, rows=8, lanes=1, width=3)
    assert [len(chunk) for chunk in plan.chunks] == [1, 2, 4, 4, 2]
