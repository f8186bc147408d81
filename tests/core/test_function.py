"""The verbs on any JAX function: laws over the toys, and planted places."""

import functools
import itertools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiles import compiles
from toys import ENCODER, SEQ, TOYS, block

import mijax
from mijax import Add, Mean, Noise, Patch, PerPrompt, Scale, Set, Zero
from mijax.core import AbstractEdit, harvest

NAMES = tuple(TOYS)
# A site of each toy, and the axes that its sweep runs over.
SWEPT = {
    "cnn": ("relu", [("layer", "channel")]),
    "encoder": ("z", ("layer", "head", "position")),
    "unrolled": ("z", ("layer", "head")),
    "vit": ("mlp_out", ("layer", "position")),
    "encoder_decoder": ("decoder.z", ("layer", "head")),
    "recurrent": ("state", ("layer", "position")),
    "experts": ("expert_out", ("expert", "position")),
    "equinox": ("linear", [("layer", "feature")]),
    "nnx": ("conv", ("channel",)),
    "linen": ("hidden", ("feature",)),
}


@functools.cache
def model(name):
    return mijax.model(*TOYS[name])


@functools.cache
def batch(name, n=3):
    key = jax.random.key(len(name))

    def draw(leaf):
        noise = jax.random.normal(key, (n, *leaf.shape))
        return leaf + 0.3 * noise

    return jax.tree.map(draw, TOYS[name][1])


def number(output):
    return output.reshape(-1)[0]


def each(name, edits=None):
    """Run every example of the batch by itself."""
    inputs = batch(name)
    alone = [jax.tree.map(lambda a, i=i: a[i], inputs) for i in range(3)]
    return jnp.stack([mijax.run(model(name), one, edits) for one in alone])


@pytest.mark.parametrize("name", NAMES)
def test_run_is_the_function(name):
    fn, inputs = TOYS[name][0], batch(name)
    plain = jax.jit(jax.vmap(fn))(inputs)
    chex.assert_trees_all_equal(mijax.run(model(name), inputs), plain)
    chex.assert_trees_all_close(each(name), plain, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_capture_is_harvest_and_patching_it_back_the_identity(name):
    fn, inputs = TOYS[name][0], batch(name)
    acts = jax.jit(jax.vmap(lambda x: harvest(fn)(x)[1]))(inputs)
    found = mijax.capture(model(name), inputs, {site: site for site in acts})
    chex.assert_trees_all_equal(found, dict(acts))
    out = mijax.run(model(name), inputs)
    for site in acts:
        back = Patch(found).at(site)
        chex.assert_trees_all_equal(mijax.run(model(name), inputs, back), out)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_a_shift(name):
    site, _ = SWEPT[name]
    inputs = jax.tree.map(lambda a: a[0], batch(name))
    one = model(name)
    grad = mijax.gradients(one, inputs, number, site)
    step = jax.tree.map(
        lambda g: jax.random.normal(jax.random.key(5), g.shape, g.dtype), grad
    )

    class Shift(AbstractEdit):
        size: float

        def __call__(self, x, place: Any):
            return x + self.size * place.part(step, x.ndim)

    rise = jax.grad(lambda e: number(mijax.run(one, inputs, Shift(e).at(site))))(0.0)
    slope = sum(map(jnp.vdot, jax.tree.leaves(grad), jax.tree.leaves(step)))
    chex.assert_trees_all_close(slope, rise, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_sweep_is_the_loop(name):
    """Other activations of the batch are patched in, one cell at a time."""
    site, over = SWEPT[name]
    inputs, one = batch(name), model(name)
    other = jax.tree.map(lambda a: a[::-1], mijax.capture(one, inputs, site))
    found = mijax.sweep(one, inputs, Patch(other).at(site), over=over, metric=number)
    info = one.sites[site]
    names = over[0] if isinstance(over, list) else over
    if isinstance(over, list):
        cells = [
            tuple(map(int, c.strip("()").split(","))) for c in found.axes[0].labels
        ]
        assert len(cells) == sum(shape[0] for shape in info.shapes)
        cells = cells[:: max(1, len(cells) // 6)]
        at = [found.axes[0].labels.index(str(c)) for c in cells]
        values = np.asarray(found.values)[:, at]
    else:
        sizes = [len(axis.labels) for axis in found.axes]
        cells = list(itertools.product(*map(range, sizes)))
        values = np.asarray(found.values).reshape(3, -1)
    for i, cell in enumerate(cells):
        place = Patch(other).at(site, **dict(zip(names, cell, strict=True)))
        runs = jax.vmap(number)(mijax.run(one, inputs, place))
        chex.assert_trees_all_close(values[:, i], runs, atol=2e-6)
    base = jax.vmap(number)(mijax.run(one, inputs))
    chex.assert_trees_all_close(found.base, base, atol=1e-6)


def test_lower_layers_are_not_run_again():
    """In a scan a block of cells starts at the lowest layer of its cells."""
    calls = []

    def counted(x):
        def step(x, p):
            jax.debug.callback(lambda _: calls.append(1), x.sum())
            return block(x, p), None

        return jax.lax.scan(step, x, ENCODER)[0].mean(0)

    one, inputs = mijax.model(counted, SEQ), batch("encoder")

    def run(layer):
        calls.clear()
        edit = Zero().at("z", layer=layer)
        mijax.sweep(one, inputs, edit, over=("head",), metric=number)
        jax.effects_barrier()
        return len(calls)

    # Three examples and two heads run two layers fewer.
    assert run(0) - run(2) == 3 * 2 * 2


def test_second_calls_do_not_compile(no_programs):
    one, inputs = model("encoder"), batch("encoder")

    def calls(layer):
        edit = Scale(0.5).at("z", layer=layer, head=1)
        mijax.run(one, inputs, edit)
        mijax.capture(one, inputs, mijax.Site("z", layer=layer, head=layer % 2))
        mijax.gradients(one, inputs, number, mijax.Site("z", layer=layer))
        over = {"layer": [layer, (layer + 1) % 3], "head": [0, 1]}
        mijax.sweep(one, inputs, Zero().at("z"), over=over, metric=number)

    calls(0)
    with compiles() as found:
        calls(1)
        calls(2)
    assert found == []


def test_places_by_axis():
    """Slices, lists, masks, one index per example: against writing into the array."""
    one, inputs = model("cnn"), batch("cnn")
    acts = mijax.capture(one, inputs, "relu")
    region = jnp.zeros((4, 4), bool).at[1:3, 2].set(True)
    places = {
        "slice": ({"row": slice(1, 3)}, lambda x, i: x.at[:, 1:3].set(0)),
        "list": ({"channel": [2, 5]}, lambda x, i: x.at[jnp.array([2, 5])].set(0)),
        "mask": ({"where": region}, lambda x, i: jnp.where(region, 0, x)),
        "each": (
            {"channel": PerPrompt([3, 1, 4])},
            lambda x, i: x.at[jnp.array([3, 1, 4])[i]].set(0),
        ),
        "two": ({"channel": 1, "column": 2}, lambda x, i: x.at[1, :, 2].set(0)),
        "feature": ({"feature": 0}, lambda x, i: x.at[..., 0].set(0)),
    }
    for place, by_hand in places.values():
        new = (acts[0], jnp.stack([by_hand(acts[1][i], i) for i in range(3)]), acts[2])
        want = mijax.run(one, inputs, Patch(new).at("relu", layer=1))
        found = mijax.run(one, inputs, Zero().at("relu", layer=1, **place))
        chex.assert_trees_all_close(found, want, atol=1e-6)


def test_capture_of_parts():
    one, inputs = model("encoder"), batch("encoder")
    z = mijax.capture(one, inputs, "z")
    sites = {
        "int": (mijax.Site("z", layer=1, head=1), z[:, 1, :, 1]),
        "list": (mijax.Site("z", layer=[0, 2], position=PerPrompt([4, 0, 2])), None),
        "slice": (mijax.Site("z", position=slice(1, 4)), z[:, :, 1:4]),
        "features": (mijax.Site("z", head_dim=[1, 3]), z[..., jnp.array([1, 3])]),
    }
    picked = z[jnp.arange(3), :, jnp.array([4, 0, 2])][:, jnp.array([0, 2])]
    sites["list"] = (sites["list"][0], picked)
    found = mijax.capture(one, inputs, {k: site for k, (site, _) in sites.items()})
    for key, (_, want) in sites.items():
        chex.assert_trees_all_equal(found[key], want)
    states = mijax.capture(model("recurrent"), batch("recurrent"), "state")
    some = mijax.Site("state", layer=1, position=slice(1, 3), embed=2)
    part = mijax.capture(model("recurrent"), batch("recurrent"), some)
    chex.assert_trees_all_equal(part, states[:, 1, 1:3, 2])
    last = mijax.Site("state", layer=[0, 1], position=PerPrompt([4, 0, 2]))
    part = mijax.capture(model("recurrent"), batch("recurrent"), last)
    want = states[jnp.arange(3), :2, jnp.array([4, 0, 2])]
    chex.assert_trees_all_equal(part, want)


EDITS = {
    "set": (Set(jnp.arange(4.0)), lambda x, acts: x * 0 + jnp.arange(4.0)),
    "add": (Add(jnp.ones(4), 0.5), lambda x, acts: x + 0.5),
    "scale": (Scale(PerPrompt([0.0, 1.0, 2.0])), None),
    "mean": (None, lambda x, acts: jnp.broadcast_to(acts.mean((0, 1)), x.shape)),
    "function": (mijax.Apply(jnp.tanh), lambda x, acts: jnp.tanh(x)),
}


@pytest.mark.parametrize("case", EDITS)
def test_edits_by_hand(case):
    edit, by_hand = EDITS[case]
    one, inputs = model("encoder"), batch("encoder")
    acts = mijax.capture(one, inputs, "z")
    edit = edit or Mean(acts)
    if by_hand is None:
        new = acts[:, 1] * jnp.array([0.0, 1.0, 2.0])[:, None, None, None]
    else:
        new = by_hand(acts[:, 1], acts[:, 1])
    want = mijax.run(one, inputs, Patch(acts.at[:, 1].set(new)).at("z", layer=1))
    found = mijax.run(one, inputs, edit.at("z", layer=1))
    chex.assert_trees_all_close(found, want, atol=1e-6)


def test_every_example_may_have_a_span_to_itself():
    one, inputs = model("encoder"), batch("encoder")
    starts, stops = jnp.array([0, 2, 1]), jnp.array([2, 5, 1])
    edit = Zero().at("z", layer=1, position=slice(starts, stops))
    found = mijax.run(one, inputs, edit)
    for i in range(3):
        alone = Zero().at("z", layer=1, position=slice(int(starts[i]), int(stops[i])))
        want = mijax.run(one, inputs[i], alone)
        chex.assert_trees_all_close(found[i], want, atol=1e-6)
    for span, says in (
        (slice(starts[:2], stops[:2]), "position holds 2 examples, but the run has 3"),
        (slice(starts, stops + 1), "position 6 is out of range"),
    ):
        with pytest.raises(mijax.MijaxError, match=says):
            mijax.run(one, inputs, Zero().at("z", position=span))


def test_noise_is_that_of_the_example_and_layer():
    one, inputs = model("encoder"), batch("encoder")
    edit = Noise(jax.random.key(0)).at("resid_pre", layer=1)
    acts = mijax.capture(one, inputs, "resid_pre", edit)
    plain = mijax.capture(one, inputs, "resid_pre")
    noise = (acts - plain)[:, 1]
    assert jnp.abs(noise[0] - noise[1]).max() > 0.1
    assert 0.8 < float(noise.std()) < 1.2
    chex.assert_trees_all_equal(acts, mijax.capture(one, inputs, "resid_pre", edit))


def test_cells_of_groups_pairs_and_regions():
    one, inputs = model("encoder"), batch("encoder")
    base = Scale(0.5).at("mlp_out", layer=0)

    def run(*edits):
        return jax.vmap(number)(mijax.run(one, inputs, [base, *edits]))

    def zero(*pairs):
        return [Zero().at("z", layer=layer, head=head) for layer, head in pairs]

    found = mijax.sweep(
        one,
        inputs,
        Zero().at("z"),
        over={("layer", "head"): {"a": [(0, 0), (2, 1)], "b": (1, 1)}},
        metric={"first": number, "sum": lambda out, x: out.sum() + x[0, 0]},
        edits=base,
    )
    assert found["first"].axes[0].labels == ("a", "b")
    want = jnp.stack([run(*zero((0, 0), (2, 1))), run(*zero((1, 1)))], 1)
    chex.assert_trees_all_close(found["first"].values, want, atol=1e-6)
    assert not jnp.allclose(found["sum"].values, want)
    windows = mijax.sweep(
        one,
        inputs,
        Zero().at("z", head=1),
        over={"layer": [range(2), range(1, 3), 1]},
        metric=number,
        edits=base,
    )
    sets = [((0, 1), (1, 1)), ((1, 1), (2, 1)), ((1, 1),)]
    want = jnp.stack([run(*zero(*pairs)) for pairs in sets], 1)
    chex.assert_trees_all_close(windows.values, want, atol=1e-6)
    net, images = model("cnn"), batch("cnn")
    quarters = (
        jnp.zeros((2, 4, 4), bool).at[0, :2, :2].set(True).at[1, 2:, 2:].set(True)
    )
    regions = mijax.sweep(
        net,
        images,
        Scale(1.0).at("relu", layer=1),
        over={"where": quarters, "coefficient": [0.0, 2.0]},
        metric=mijax.probability(3),
    )
    for i, c in itertools.product(range(2), range(2)):
        edit = Scale([0.0, 2.0][c]).at("relu", layer=1, where=quarters[i])
        out = jax.nn.softmax(mijax.run(net, images, edit))[:, 3]
        chex.assert_trees_all_close(regions.values[:, i, c], out, atol=1e-6)


def test_lanes_that_change_nothing_are_not_run():
    one, inputs = model("encoder"), batch("encoder")
    acts = mijax.capture(one, inputs, "z")
    moved = acts.at[1, 2, :, 1].add(1.0)
    found = mijax.sweep(
        one, inputs, Patch(moved).at("z"), over=("layer", "head"), metric=number
    )
    assert found.work.run == 1
    changed = np.asarray(found.values != found.base[:, None, None])
    assert np.argwhere(changed).tolist() == [[1, 2, 1]]


def test_memory_and_resume(tmp_path):
    """Small chunks and a resumed run give the same values."""
    one, inputs = model("cnn"), batch("cnn")
    sweep = functools.partial(
        mijax.sweep,
        one,
        inputs,
        Zero().at("relu"),
        over=[("layer", "channel")],
        metric=number,
    )
    whole = sweep()
    file = str(tmp_path / "sweep.npz")
    done = []

    def stop(now, total):
        done.append(now)
        if len(done) == 3:
            raise KeyboardInterrupt

    chunks = mijax.Chunks(memory=20_000, resume=file)
    with pytest.raises(KeyboardInterrupt):
        sweep(chunks=chunks, progress=stop)
    resumed = sweep(chunks=chunks)
    assert resumed.work.chunks > 3
    chex.assert_trees_all_close(resumed.values, whole.values, atol=1e-6)


REFUSED = {
    "site": (lambda m, x: Zero().at("rely"), "no site 'rely'. Did you mean 'relu'"),
    "axis": (lambda m, x: Zero().at("relu", channels=1), "Did you mean 'channel'"),
    "layer": (lambda m, x: Zero().at("relu", layer=3), "layers 0 to 2"),
    "no layers": (lambda m, x: Zero().at("logits", layer=0), "no layers"),
    "index": (lambda m, x: Zero().at("relu", channel=99), "channels 0 to 15"),
    "mask": (
        lambda m, x: Zero().at("relu", layer=0, where=jnp.ones((3, 3), bool)),
        "does not broadcast",
    ),
    "each": (lambda m, x: Zero().at("relu", channel=PerPrompt([1, 2])), "2 examples"),
    "value": (lambda m, x: Set(jnp.ones(7)).at("logits"), "does not broadcast"),
    "source": (lambda m, x: Patch(jnp.ones((3, 4))).at("logits"), "needs"),
    "shape": (
        lambda m, x: mijax.Apply(lambda v: v[:1]).at("logits"),
        "keeps the shape",
    ),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", REFUSED)
def test_edits_that_do_not_fit_are_refused(case):
    make, says = REFUSED[case]
    one, inputs = model("cnn"), batch("cnn")
    with pytest.raises(mijax.MijaxError, match=says):
        mijax.run(one, inputs, make(one, inputs))


BAD: Any = "cnn"


def leaked(x):
    """Return a model that holds a value of a trace that is over."""
    kept = []
    jax.jit(lambda y: kept.append(2 * y) or y)(x)
    return mijax.model(lambda y: y + kept[0], x)


CALLS = {
    "rank": (lambda m, x: mijax.run(m, x[0, 0]), "one more axis"),
    "tree": (lambda m, x: mijax.run(m, {"x": x}), "structure"),
    "integers": (lambda m, x: mijax.run(m, x.astype(int)), "float32"),
    "sizes": (
        lambda m, x: mijax.run(
            model("encoder_decoder"),
            {"source": jnp.ones((2, 5, 8)), "target": jnp.ones((3, 3, 8))},
        ),
        "2, 3",
    ),
    "traced": (lambda m, x: leaked(x), "traced values"),
    "no function": (lambda m, x: mijax.model(BAD, x), "takes a function"),
    "bare": (lambda m, x: mijax.run(TOYS["cnn"][0], x), "mijax.model"),
    "metric": (
        lambda m, x: mijax.sweep(
            m, x, Zero().at("relu", layer=0), over=["channel"], metric=lambda o: o
        ),
        "one number",
    ),
    "ragged": (
        lambda m, x: mijax.sweep(
            m, x, Zero().at("relu"), over=["layer", "channel"], metric=number
        ),
        "different sizes",
    ),
    "fixed": (
        lambda m, x: mijax.sweep(
            m, x, Zero().at("relu", layer=1), over=["layer"], metric=number
        ),
        "fixed layer",
    ),
    "nan": (
        lambda m, x: mijax.sweep(
            m, x, Set(jnp.nan).at("relu", layer=1), over=["channel"], metric=number
        ),
        "NaN",
    ),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", CALLS)
def test_calls_that_do_not_fit_are_refused(case):
    call, says = CALLS[case]
    with pytest.raises(mijax.MijaxError, match=says):
        call(model("cnn"), batch("cnn"))


def test_mesh():
    one, inputs = model("encoder"), batch("encoder")
    mesh = jax.make_mesh((4,), ("cells",))
    sweep = functools.partial(
        mijax.sweep, one, inputs, Zero().at("z"), over=("layer", "head"), metric=number
    )
    chex.assert_trees_all_close(sweep(mesh=mesh).values, sweep().values, atol=1e-6)
