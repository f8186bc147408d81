"""Circuits of nodes: laws over the toys and a decoder, and planted channels."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiles import compiles
from toys import TOYS

import mijax
from mijax import circuits
from mijax.circuits.nodes._greedy import late_first

NODES = {
    "cnn": {"relu": ("layer", "channel"), "logits": ()},
    "encoder": {"z": ("layer", "head"), "mlp_out": "layer"},
    "experts": {"expert_out": ("expert",), "router": ("position", "expert")},
    "recurrent": {"state": ("layer", "position", "embed")},
    "decoder": {"z": ("layer", "head")},
}
NAMES = tuple(NODES)
METHODS = (
    circuits.NodeExact(),
    circuits.NodeAttribution(),
    circuits.NodeIG(4),
    circuits.NodeACDC(0.1),
    circuits.NodeProbing(regularization=20.0, steps=100, learning_rate=0.2),
)


@functools.cache
def model(name):
    if name != "decoder":
        return mijax.model(*TOYS[name])
    decoder = mijax.testing.tiny_gpt2(jax.random.key(0))
    return mijax.model(lambda tokens: decoder(tokens)[0], jnp.zeros(4, jnp.int32))


def number(output):
    return output.reshape(-1)[0] - output.reshape(-1)[-1]


@functools.cache
def batch(name, seed, n=3):
    key = jax.random.key(seed)
    if name == "decoder":
        return jax.random.randint(key, (n, 4), 0, 64)
    example = TOYS[name][1]
    return example + 0.5 * jax.random.normal(key, (n, *example.shape))


@functools.cache
def task(name):
    clean, corrupt = batch(name, 0), batch(name, 1)
    options = {"metric": number, "nodes": NODES[name]}
    return circuits.NodeTask(model(name), clean, corrupt, **options)


@functools.cache
def exact(name):
    return circuits.discover_nodes(task(name), circuits.NodeExact())


def replaced(name, node):
    """The metric with one node patched, by `run`."""
    one = task(name)
    site, _, index = node.rstrip("]").partition("[")
    axes = next(s.axes for s in one.nodes.sites if s.site == site)
    place = dict(zip(axes, map(int, index.split(",")), strict=True)) if axes else {}
    acts = mijax.capture(one.model, one.corrupt, site)
    edit = mijax.Patch(acts).at(site, **place)
    return jax.vmap(number)(mijax.run(one.model, one.clean, edit))


@pytest.mark.parametrize("name", NAMES)
def test_exact_scores_are_the_loop(name):
    one = task(name)
    scores = exact(name)
    base = jax.vmap(number)(mijax.run(one.model, one.clean))
    names = one.nodes.names()
    picked = range(0, len(names), max(1, len(names) // 2))
    for i in (*picked, len(names) - 1):
        fall = base - replaced(name, names[i])
        chex.assert_trees_all_close(scores.values[i], fall.mean(), atol=2e-6)
        error = fall.std(ddof=1) / 3**0.5
        chex.assert_trees_all_close(scores.error[i], error, atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_circuits_are_patched_runs(name):
    """Full, empty, and without one node: the other way to exact scores."""
    one = task(name)
    names = one.nodes.names()
    each = [names[i] for i in (0, len(names) // 2, len(names) - 1)]
    full, empty = circuits.NodeCircuit.full(one), circuits.NodeCircuit.empty(one)
    without = [full - circuits.NodeCircuit.of(one, [node]) for node in each]
    found = circuits.evaluate_nodes(one, [full, empty, *without])
    assert found.faithfulness.mean[:2].tolist() == [1, 0]
    assert found.completeness.mean[:2].tolist() == [0, 1]
    plain = jax.vmap(number)(mijax.run(one.model, one.clean))
    chex.assert_trees_all_close(found.full, plain, atol=1e-6)
    index = one.nodes.indices(each)
    falls = (found.full - found.metric[2:]).mean(1)
    # A fall is a difference of metrics, which are rounded in proportion to their size.
    size = max(1.0, float(jnp.abs(found.full).max()))
    chex.assert_trees_all_close(falls, exact(name).values[index], atol=2e-6 * size)


@pytest.mark.parametrize("name", NAMES)
def test_integrated_gradients_are_complete(name):
    one = task(name)
    scores = circuits.discover_nodes(one, circuits.NodeIG(steps=24))
    full = circuits.NodeCircuit.full(one)
    ends = circuits.run_nodes(one, [full, ~full]).mean(1)
    # The CNN has kinks, which no quadrature integrates exactly.
    error = 2e-3 if name == "cnn" else 2e-5
    chex.assert_trees_all_close(scores.values.sum(), ends[0] - ends[1], atol=error)


def test_attribution_is_the_sum_of_products():
    """By hand: gradient times difference, summed over the other axes."""
    one = task("encoder")
    scores = circuits.discover_nodes(one, circuits.NodeAttribution())
    slopes = mijax.gradients(one.model, one.clean, number, "z")
    clean, corrupt = (
        mijax.capture(one.model, inputs, "z") for inputs in (one.clean, one.corrupt)
    )
    by_hand = (slopes * (clean - corrupt)).sum((2, 4)).mean(0)
    chex.assert_trees_all_close(scores["z"], np.asarray(by_hand), atol=1e-6)


def linear(x):
    """A linear network of three layers."""
    for i in range(3):
        x = mijax.site("x", jnp.roll(x, i) * jnp.arange(1.0, 5), "unit")
    return x


@pytest.mark.parametrize("ablation", [None, mijax.Set(2.0)])
def test_attribution_is_exact_on_a_linear_model(ablation):
    clean, corrupt = jax.random.normal(jax.random.key(3), (2, 5, 4))
    one = circuits.NodeTask(
        mijax.model(linear, clean[0]),
        clean,
        corrupt if ablation is None else None,
        metric=lambda x: x[0] + 2 * x[3],
        nodes={"x": ("layer", "unit")},
        ablation=ablation,
    )
    exact = circuits.discover_nodes(one, circuits.NodeExact())
    found = circuits.discover_nodes(one, circuits.NodeAttribution())
    chex.assert_trees_all_close(found.values, exact.values, rtol=1e-5, atol=1e-5)


PLANTED = ("relu[0, 2]", "relu[0, 5]", "relu[1, 3]")


def planted_net(image):
    """Channels 2 and 5, then 3, carry the class; the others are read by nobody."""
    image = image.reshape(6, 4, 4)
    x = mijax.site("relu", jax.nn.relu(image), "channel row column")
    x = jnp.zeros((4, 4, 4)).at[3].set(x[2] + x[5]).at[0].set(x[1])
    x = mijax.site("relu", jax.nn.relu(x), "channel row column")
    return jnp.stack([x[3].sum(), jnp.float32(0)])


def planted_task(**options):
    clean = jax.random.uniform(jax.random.key(4), (4, 96), minval=0.5)
    if not options:
        options = {"corrupt": clean * jax.random.uniform(jax.random.key(5), (4, 96))}
    return circuits.NodeTask(
        mijax.model(planted_net, clean[0]),
        clean,
        metric=mijax.logit_difference(0, 1),
        nodes={"relu": ("layer", "channel")},
        **options,
    )


@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_planted_channels_are_found(method):
    acts = mijax.capture(planted_task().model, planted_task().clean, "relu")
    other = jax.tree.map(jnp.zeros_like, acts)
    for one in (planted_task(), planted_task(ablation=mijax.Mean(other))):
        scores = circuits.discover_nodes(one, method)
        assert scores.top(3).names() == PLANTED
        least = math.log(2) if isinstance(method, circuits.NodeProbing) else 1e-3
        assert set(scores.above(least).names()) == set(PLANTED)
        assert {entry.name for entry in scores.best(3)} == set(PLANTED)
        chosen = [scores.top(n) for n in (0, 3, 5)]
        found = circuits.evaluate_nodes(one, chosen)
        assert found.faithfulness.mean.tolist() == [0, 1, 1]
        assert found.completeness.mean.tolist() == [1, 0, 0]


def test_latents_of_a_dictionary_are_nodes():
    """Latents 4 and 7 of layer 1 carry the metric, by the weights of the readout."""
    decode = jnp.linalg.qr(jax.random.normal(jax.random.key(7), (12, 12)))[0]
    readout = 2 * decode[4] - decode[7]

    def net(x):
        for _ in range(2):
            x = mijax.site("hidden", x, "unit")
        return x @ readout

    def spliced(x, at):
        if at.layer != 1:
            return x
        latents = mijax.site("latents", x @ decode.T, "latent")
        return latents @ decode + (x - (x @ decode.T) @ decode)

    clean, corrupt = jax.random.normal(jax.random.key(8), (2, 5, 12))
    through = mijax.harvest(net, edits={"hidden": spliced})
    one = circuits.NodeTask(
        mijax.model(lambda x: through(x)[0], clean[0]),
        clean,
        corrupt,
        metric=lambda output: output,
        nodes={"latents": "latent"},
    )
    found = circuits.discover_nodes(one, circuits.NodeAttribution())
    falls = ((clean - corrupt) @ decode.T).mean(0) * jnp.zeros(12).at[4].set(2).at[
        7
    ].set(-1)
    chex.assert_trees_all_close(found.values, np.asarray(falls), atol=1e-5)


@pytest.mark.parametrize("absolute", [False, True])
def test_acdc_is_the_loop(absolute):
    """Nodes are removed from the last layer to the first, one run at a time."""
    one = task("encoder")
    order = [
        name.format(layer)
        for layer in (2, 1, 0)
        for name in ("mlp_out[{}]", "z[{}, 1]", "z[{}, 0]")
    ]
    kept = circuits.NodeCircuit.full(one)
    now = circuits.run_nodes(one, kept).mean()
    for name in order:
        less = kept - circuits.NodeCircuit.of(one, [name])
        new = circuits.run_nodes(one, less).mean()
        fall = abs(now - new) if absolute else now - new
        if fall < 0.01:
            kept, now = less, new
    method = circuits.NodeACDC(0.01, absolute=absolute)
    found = circuits.discover_nodes(one, method).above(1)
    assert 0 < len(kept) < len(one.nodes)
    assert found == kept


def test_order_follows_the_model():
    """Sites after the layers come last, those before first."""
    sites = {"embed": (), "z": "layer", "mlp_out": "layer", "logits": ()}
    fn, image = TOYS["vit"]
    one = circuits.NodeTask(
        mijax.model(fn, image), image, image, metric=number, nodes=sites
    )
    names = [one.nodes.names()[i] for i in late_first(one)]
    assert names[:3] == ["logits", "mlp_out[2]", "z[2]"]
    assert names[-3:] == ["mlp_out[0]", "z[0]", "embed"]


def test_probing_is_reproducible_whatever_the_memory():
    one = planted_task()
    method = circuits.NodeProbing(steps=3, batch=2)
    first = circuits.discover_nodes(one, method)
    again = circuits.discover_nodes(one, method, memory=1)
    chex.assert_trees_all_close(first.values, again.values, atol=1e-5)


def test_another_mask_does_not_compile():
    one = task("encoder")
    names = one.nodes.names()
    circuit = circuits.NodeCircuit.of(one, names[:2])
    circuits.evaluate_nodes(one, circuit)
    circuits.run_nodes(one, circuit)
    with compiles() as found:
        other = circuits.NodeCircuit.of(one, names[2:5])
        circuits.evaluate_nodes(one, other)
        circuits.run_nodes(one, other)
    assert found == []


def test_memory_does_not_change_values():
    one = task("cnn")
    masks = jax.random.bernoulli(jax.random.key(6), 0.5, (7, len(one.nodes)))
    some = [circuits.NodeCircuit(one.nodes, mask) for mask in np.asarray(masks)]
    chex.assert_trees_all_close(
        circuits.run_nodes(one, some, memory=1),
        circuits.run_nodes(one, some),
        atol=1e-6,
    )
    method = circuits.NodeAttribution()
    small = circuits.discover_nodes(one, method, memory=1)
    large = circuits.discover_nodes(one, method)
    chex.assert_trees_all_close(small.values, large.values, atol=1e-6)
    chex.assert_trees_all_close(small.error, large.error, atol=1e-6)


def test_circuits_are_sets():
    one = task("encoder")
    a = circuits.NodeCircuit.of(one, ["z[0, 1]", "mlp_out[2]"])
    b = circuits.NodeCircuit.of(one, ["z[0,1]", "z[1, 0]"])
    assert (a & b).names() == ("z[0, 1]",)
    assert len(a | b) == 3
    assert (a - b).names() == ("mlp_out[2]",)
    assert "z[1, 0]" in b
    assert "z[1, 0]" not in a
    assert a == ~~a
    assert a != b
    assert hash(a) == hash(~~a)
    assert a.masks["z"].shape == (3, 2)
    assert a.masks["mlp_out"].tolist() == [False, False, True]
    shapes = [
        mask.shape for mask in circuits.NodeCircuit.full(task("cnn")).masks["relu"]
    ]
    assert shapes == [(8,), (16,), (16,)]


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_refused():
    one, clean = task("cnn"), batch("cnn", 0)
    net = model("cnn")

    def made(*args, metric=number, **options):
        return circuits.NodeTask(*args, metric=metric, **options)

    nodes = {"relu": ("layer", "channel")}
    for wrong, options, text in (
        ((net, clean), {"nodes": nodes}, "give one of them"),
        ((number, clean), {"nodes": nodes}, "takes mijax.model"),
        ((net, clean, clean[:2]), {"nodes": nodes}, "one counterpart for each"),
        ((net, clean, clean), {"nodes": {"rely": "layer"}}, "'relu'"),
        ((net, clean, clean), {"nodes": {"relu": "chan"}}, "'channel'"),
        ((net, clean, clean), {"nodes": {"relu": "channel"}}, "different sizes"),
        ((net, clean, clean), {"nodes": "relu"}, "axes of each site"),
        ((net, clean), {"nodes": nodes, "ablation": "zero"}, "edit without a place"),
        ((net, clean, clean), {"nodes": nodes, "metric": {"a": number}}, "one metric"),
    ):
        with pytest.raises(mijax.MijaxError, match=text):
            made(*wrong, **options)
    with pytest.raises(mijax.MijaxError, match="no node 'relu\\[9, 9\\]'"):
        circuits.NodeCircuit.of(one, ["relu[9, 9]"])
    with pytest.raises(mijax.MijaxError, match="make both from the same task"):
        circuits.run_nodes(one, circuits.NodeCircuit.full(task("encoder")))
    with pytest.raises(mijax.MijaxError, match="got n=99"):
        circuits.discover_nodes(one, circuits.NodeAttribution()).top(99)
    with pytest.raises(mijax.MijaxError, match="no scores of a site 'rely'"):
        circuits.discover_nodes(one, circuits.NodeAttribution())["rely"]
