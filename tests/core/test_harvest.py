"""Laws of `site` and `harvest` over models of every kind."""

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import ENCODER, IMAGE, SEQ, TOYS, block, encoder, unrolled

import mijax
from mijax import harvest, site
from mijax._errors import ShapeError, SiteError
from mijax.core import prefixed

CASES = [
    (name, place)
    for name, (fn, example) in TOYS.items()
    for place in mijax.sites(fn, example)
]


@eqx.filter_jit
def plain(fn, example):
    return fn(example)


@eqx.filter_jit
def harvested(fn, example, **options):
    return harvest(fn, **options)(example)


def layer_of(values, layer):
    return values if layer is None else values[layer]


@pytest.mark.parametrize("name", TOYS)
def test_without_edits_it_is_the_function_bit_for_bit(name):
    fn, example = TOYS[name]
    out, none = harvested(fn, example, want=())
    chex.assert_trees_all_equal(out, plain(fn, example))
    assert len(none) == 0
    eager, acts = harvest(fn)(example)
    chex.assert_trees_all_close(eager, out, atol=1e-5)
    table = mijax.sites(fn, example)
    assert list(acts) == list(table)
    for place, info in table.items():
        layers = [acts[place]] if info.layers is None else acts[place]
        assert tuple(a.shape for a in layers) == info.shapes
        assert all(len(info.axes) == a.ndim for a in layers)


@pytest.mark.parametrize(("name", "place"), CASES)
def test_putting_back_what_was_read_is_the_identity_bit_for_bit(name, place):
    fn, example = TOYS[name]
    info = mijax.sites(fn, example)[place]
    out, acts = harvest(fn, want=[place])(example)

    def put(value, at):
        own = acts[place] if info.layers is None else acts[place][at.layer]
        for loop in info.axes[: len(info.axes) - value.ndim]:
            own = own[at.index[loop]]
        return own

    again, same = harvest(fn, edits={place: put}, want=[place])(example)
    chex.assert_trees_all_equal((again, same), (out, acts))


@pytest.mark.parametrize(("name", "place"), CASES)
def test_every_layer_of_every_site_changes_the_output_as_its_gradient_says(name, place):
    fn, example = TOYS[name]
    info = mijax.sites(fn, example)[place]

    @jax.jit
    def moved(step, layer):
        def push(value, at):
            ramp = jnp.cos(jnp.arange(value.size, dtype=value.dtype))
            here = jnp.where(at.layer == layer, step, 0)
            return value + here * ramp.reshape(value.shape)

        out, _ = harvest(fn, edits={place: push}, want=())(example)
        return sum(jnp.sin(a).sum() for a in jax.tree.leaves(out))

    for layer in range(info.layers or 1):
        rise = (moved(1e-2, layer) - moved(-1e-2, layer)) / 2e-2
        slope = jax.grad(moved)(0.0, layer)
        assert abs(rise) > 1e-4
        np.testing.assert_allclose(slope, rise, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("name", TOYS)
def test_vmap_is_a_loop_and_a_second_call_traces_nothing(name):
    fn, example = TOYS[name]
    batch = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), example)
    traces = []

    @jax.jit
    def both(batch):
        traces.append(1)
        return jax.vmap(harvest(fn))(batch)

    outs, acts = both(batch)
    both(batch)
    assert len(traces) == 1
    for i in range(2):
        one = jax.tree.map(lambda a, i=i: a[i], batch)
        out, own = harvest(fn)(one)
        chex.assert_trees_all_close(
            jax.tree.map(lambda a, i=i: a[i], outs), out, atol=1e-5
        )
        mine = jax.tree.map(lambda a, i=i: a[i], acts)
        chex.assert_trees_all_close(mine, own, atol=1e-5)


def test_stacked_and_unrolled_blocks_have_the_same_sites_and_activations():
    assert repr(mijax.sites(encoder, SEQ)) == repr(mijax.sites(unrolled, SEQ))
    halve = {"z": lambda z, at: jnp.where(at.layer == 1, z / 2, z)}
    stacked = harvest(encoder, edits=halve)(SEQ)
    chex.assert_trees_all_close(stacked, harvest(unrolled, edits=halve)(SEQ), atol=1e-5)


def test_a_function_is_traced_once_for_a_shape():
    calls = []

    def fn(x):
        calls.append(1)
        return site("double", 2 * x, "n")

    for x in (SEQ[0], SEQ[1]):
        mijax.sites(fn, x)
        harvest(fn)(x)
    assert len(calls) == 1
    mijax.sites(fn, SEQ[0, :3])
    assert len(calls) == 2


def test_sites_of_two_stacks_count_on():
    def two(x):
        x = jax.lax.scan(lambda x, p: (block(x, p), None), x, ENCODER)[0]
        return block(x, jax.tree.map(lambda a: a[0], ENCODER))

    acts = harvest(two)(SEQ)[1]
    assert acts.z.shape[0] == mijax.sites(two, SEQ)["z"].layers == 4
    last = {"z": lambda z, at: jnp.where(at.layer == 3, 0, z)}
    edited = harvest(two, edits=last)(SEQ)[1].z
    assert (edited[3] == 0).all()
    assert (edited[:3] == acts.z[:3]).all()


def test_selected_branches_and_loops():
    def fn(x):
        double = lambda x: site("branch", 2 * x, "n")  # noqa: E731
        x = jax.lax.cond(x[0] > 0, double, lambda x: site("other", -x, "n"), x)
        step = lambda c: (c[0] + 1, site("loop", c[1] + 1, "n"))  # noqa: E731
        return jax.lax.while_loop(lambda c: c[0] < 3, step, (0, x))[1]

    x = jnp.array([1.0, 2.0])
    out, acts = harvest(fn)(x)
    assert out.tolist() == acts.loop.tolist() == [5, 7]
    assert acts.branch.tolist() == [2, 4]
    assert acts.other.tolist() == [0, 0]
    tens = {"loop": lambda v, at: v + 10 * at.index["step"]}
    assert harvest(fn, edits=tens)(x)[0].tolist() == [35, 37]
    minus = {"other": lambda v, at: v * 0}
    assert harvest(fn, edits=minus)(-x)[0].tolist() == [3, 3]


def test_remat_stays_one_and_keeps_its_gradient():
    fn = jax.checkpoint(lambda x: site("sin", jnp.sin(x), "n") ** 2)
    half = {"sin": lambda v, at: v / 2}
    edited = lambda x: harvest(fn, edits=half)(x)[0].sum()  # noqa: E731
    x = jnp.array([0.3, 0.5])
    assert "remat" in str(jax.make_jaxpr(edited)(x))
    chex.assert_trees_all_close(
        jax.grad(edited)(x), jnp.sin(x) * jnp.cos(x) / 2, atol=1e-6
    )


@jax.custom_vjp
def tripled(x):
    return site("inside", jnp.sin(x), "n")


tripled.defvjp(lambda x: (tripled(x), None), lambda _, g: (3 * g,))


@jax.custom_jvp
def quadrupled(x):
    return site("inside", jnp.sin(x), "n")


quadrupled.defjvp(lambda x, t: (quadrupled(x[0]), 4 * t[0]))


@pytest.mark.parametrize(("inner", "slope"), [(tripled, 3), (quadrupled, 4)])
def test_custom_rules_are_kept_and_gradients_inside_refused(inner, slope):
    fn = lambda x: site("outside", inner(x), "n").sum()  # noqa: E731
    x = jnp.array([0.3, 0.5])
    one = harvest(fn, want=["outside"])
    assert jax.grad(lambda x: one(x)[0])(x).tolist() == [slope, slope]
    zero = {"inside": lambda v, at: 0 * v}
    assert harvest(fn, edits=zero)(x)[0] == 0
    assert harvest(fn)(x)[1].inside.tolist() == jnp.sin(x).tolist()
    with pytest.raises(SiteError, match="'inside' is inside a function with a custom"):
        jax.grad(lambda x: harvest(fn, edits=zero)(x)[0])(x)


def test_devices_of_a_shard_map_are_an_axis():
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("x")

    @jax.shard_map(mesh=mesh, in_specs=spec, out_specs=spec)
    def fn(x):
        return site("part", 2 * x, "n") + jax.lax.psum(x.sum(), "x")

    x = jnp.arange(4.0)
    assert mijax.sites(fn, x)["part"].axes == ("x", "n")
    out, acts = jax.jit(harvest(fn))(x)
    assert acts.part.tolist() == [[0, 2], [4, 6]]
    assert out.tolist() == [6, 8, 10, 12]
    second = {"part": lambda v, at: jnp.where(at.index["x"] == 1, 0, v)}
    assert harvest(fn, edits=second)(x)[0].tolist() == [6, 8, 6, 6]


def test_axes_of_inner_vmaps_are_first_and_named():
    f = lambda x: site("v", x, "n")  # noqa: E731
    twice = jax.vmap(jax.vmap(f), axis_name="row")
    info = mijax.sites(twice, IMAGE)["v"]
    assert info.axes == ("row", "mapped", "n")
    assert info.shapes == ((3, 16, 16),)
    assert mijax.sites(jax.vmap(jax.vmap(f)), IMAGE)["v"].axes[0] == "mapped_2"


def test_a_prefix_names_the_sites_of_one_tower():
    attention = eqx.tree_at(
        lambda a: (a.w_q, a.w_k, a.w_v, a.w_o),
        mijax.testing.tiny_llama(jax.random.key(0)).blocks.attention,
        replace_fn=lambda w: w[0],
    )
    attention = eqx.tree_at(
        lambda a: a.rotary, attention, None, is_leaf=lambda x: x is None
    )
    rows = mijax.core.internal.Sequence(jnp.arange(4, dtype=jnp.int32))
    x = jax.random.normal(jax.random.key(1), (4, attention.w_q.shape[0]))
    inner = lambda x: attention(x, rows)  # noqa: E731
    nested = lambda x: site("mixed", prefixed("inner.", inner)(x), "n h d")  # noqa: E731
    both = lambda x: inner(x) + prefixed("outer.", nested)(x)  # noqa: E731
    own = list(mijax.sites(inner, x))
    outer = [*(f"outer.inner.{name}" for name in own), "outer.mixed"]
    assert list(mijax.sites(both, x)) == [*own, *outer]
    # One head's view of a shared key is edited in one tower only.
    zero = {"outer.inner.k": lambda k, at: k.at[:, 0].set(0)}
    alone = {"k": zero["outer.inner.k"]}
    out = harvest(both, edits=zero)(x)[0]
    expected = inner(x) + harvest(inner, edits=alone)(x)[0]
    np.testing.assert_allclose(out, expected, atol=1e-6)
    assert float(jnp.abs(expected - 2 * inner(x)).max()) > 1e-4


def test_marks_compile_to_nothing():
    bare = lambda x: jnp.tanh(x @ x.T)  # noqa: E731
    marked = lambda x: site("t", jnp.tanh(x @ x.T), "a b")  # noqa: E731
    cost = lambda f: jax.jit(f).lower(SEQ).compile().cost_analysis()["flops"]  # noqa: E731
    assert cost(bare) == cost(marked) == cost(lambda x: harvest(marked)(x)[0])


def test_tables_print_and_render():
    table = mijax.sites(TOYS["cnn"][0], IMAGE)
    lines = repr(table).splitlines()
    assert lines[0].split() == ["name", "layers", "axes", "shape", "dtype"]
    assert lines[1].startswith("conv    0..2    channel row column  (8, 8, 8), (16, 4")
    assert "<td>channel row column</td>" in table._repr_html_()
    with pytest.raises(SiteError, match=r"no site 'reul'\. Did you mean 'relu'"):
        table["reul"]


def dropped(x):
    site("lost", x, "n")
    return x


def mixed(x):
    return site("s", x, "row column") + site("s", x.T, "column row").T


def in_condition(x):
    on = lambda x: site("c", x, "row column").sum() > 9  # noqa: E731
    return jax.lax.while_loop(on, lambda x: x / 2, x)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: site("s", SEQ, "row"), SiteError, r"axes 'row', but its value has"),
        (lambda: site("s", SEQ, "row row"), SiteError, "an axis name twice"),
        (lambda: harvest(encoder, want=["zz"])(SEQ), SiteError, "no site 'zz'"),
        (
            lambda: harvest(encoder, edits={"zz": lambda z, at: z})(SEQ),
            SiteError,
            "no site 'zz'",
        ),
        (
            lambda: harvest(encoder, edits={"z": lambda z, at: z[0]})(SEQ),
            ShapeError,
            r"returns float32\[2, 4\], but its value is float32\[5, 2, 4\]",
        ),
        (
            lambda: harvest(encoder, edits={"z": lambda z, at: z > 0})(SEQ),
            ShapeError,
            "keeps shape and dtype",
        ),
        (
            lambda: harvest(dropped, edits={"lost": lambda x, at: x})(SEQ[0]),
            SiteError,
            "does not use what site",
        ),
        (lambda: mijax.sites(mixed, SEQ), SiteError, "used with different axes"),
        (lambda: mijax.sites(in_condition, SEQ), SiteError, "inside `while`"),
        (lambda: harvest(lambda x: x)(SEQ)[1]["z"], SiteError, "no activations"),
        (
            lambda: mijax.sites(lambda x: site("s", x, "step: row column"), SEQ),
            SiteError,
            "it is in 0",
        ),
    ],
)
def test_refuses(call, error, says):
    with pytest.raises(error, match=says):
        call()
