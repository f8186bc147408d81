"""Circuits of models with several streams: an encoder and a decoder."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from toys import ENCODER, PAIR, norm

import mijax
from mijax import circuits, nn
from mijax.core.internal import Sequence

LAYERS = [jax.tree.map(lambda a, i=i: a[i], ENCODER) for i in range(3)]


def block(stream, weights, tower):
    names = [f"{tower}{letter}" for letter in "qkv"]
    inputs = stream.read(*names, heads=2, norm=norm)
    attention = nn.Attention(*weights["qkv"], weights["out"], causal=False)
    z = attention(inputs, Sequence(jnp.arange(len(stream.x))))
    stream = stream.write(f"{tower}attn_out", z, attention.w_o)
    read = stream.read(f"{tower}mlp_in", norm=norm)
    return stream.add(f"{tower}mlp_out", jnp.tanh(read @ weights["mlp"]))


def encoder_decoder(inputs, start):
    """The toy of this name, with streams."""
    memory = start("encoder", source=inputs["source"])
    for weights in LAYERS:
        memory = block(memory, weights, "encoder.")
    stream = start("decoder", target=inputs["target"])
    for weights in LAYERS:
        keys, values = memory.read("cross.k", "cross.v")
        pattern = jax.nn.softmax(stream.read("cross.q") @ keys.T)
        stream = stream.add("cross.attn_out", pattern @ values)
        stream = block(stream, weights, "decoder.")
    return stream.read("logits")[-1]


MODEL = circuits.StreamModel(encoder_decoder, PAIR)
GRAPH = circuits.Graph.of(MODEL)
DRAW = functools.partial(jax.random.normal, jax.random.key(1))


def metric(output):
    return output[0] - output[1]


@functools.cache
def task():
    clean = jax.tree.map(lambda a: jnp.stack([a, -a]), PAIR)
    corrupt = jax.tree.map(lambda a: a + DRAW(a.shape), clean)
    return circuits.Task(clean, corrupt, metric=metric)


def example(inputs, i):
    return jax.tree.map(lambda a: a[i], inputs)


@jax.jit
def by_hand(inputs, less):
    """The toy in plain lines, in which readers see less; and what everyone writes."""
    written = dict(inputs)

    def see(x, reader):
        return x - less[reader] if reader in less else x

    def attend(x, i, p, tower):
        out = 0
        for h in range(2):
            node = f"{tower}a{i}.h{h}"
            q, k, v = (
                norm(see(x, f"{node}<{c}>")) @ p["qkv"][j, :, h]
                for j, c in enumerate("qkv")
            )
            written[node] = jax.nn.softmax(q @ k.T / 2) @ v @ p["out"][h]
            out += written[node]
        x = x + out
        node = f"{tower}m{i}"
        written[node] = jnp.tanh(norm(see(x, node)) @ p["mlp"])
        return x + written[node]

    memory, x = inputs["source"], inputs["target"]
    for i, p in enumerate(LAYERS):
        memory = attend(memory, i, p, "encoder.")
    for i, p in enumerate(LAYERS):
        node = f"cross.a{i}"
        scores = see(x, f"{node}<q>") @ see(memory, f"{node}<k>").T
        written[node] = jax.nn.softmax(scores) @ see(memory, f"{node}<v>")
        x = attend(x + written[node], i, p, "decoder.")
    return metric(see(x, "logits")[-1]), written


def test_streams_are_the_toy_s():
    chex.assert_trees_all_close(MODEL(PAIR), toys.encoder_decoder(PAIR), atol=1e-5)
    chex.assert_trees_all_close(metric(MODEL(PAIR)), by_hand(PAIR, {})[0], atol=1e-5)


def test_edges_are_along_one_stream():
    towers = {"source": "encoder", "target": "decoder", "logits": "decoder"}

    def stream(name):
        tower = towers.get(name) or name.partition(".")[0]
        if tower == "cross":
            return "encoder" if name.endswith(("<k>", "<v>")) else "decoder"
        return tower

    assert GRAPH.n_edges == 310
    for sender, receiver in np.argwhere(GRAPH.edges):
        ends = GRAPH.senders[sender], GRAPH.receivers[receiver]
        assert stream(ends[0]) == stream(ends[1])
    # All that the encoder writes is there when the first cross-attention reads it.
    into = {s for s, r in zip(*np.nonzero(GRAPH.edges), strict=True) if r == 22}
    assert GRAPH.receivers[22] == "cross.a0<v>"
    expected = [n for n in GRAPH.senders if n == "source" or n.startswith("encoder.")]
    assert [GRAPH.senders[s] for s in sorted(into)] == expected
    assert GRAPH.owner("cross.a2<k>") == "cross.a2"
    with pytest.raises(mijax.MijaxError, match="no edge"):
        GRAPH.edge("decoder.m0 <- encoder.m0")


def test_full_is_the_clean_run_and_empty_the_corrupt_one():
    ends = [circuits.Circuit.full(GRAPH), circuits.Circuit.empty(GRAPH)]
    found = circuits.run_circuits(MODEL, task(), ends)
    for row, inputs in zip(found, (task().clean, task().corrupt), strict=True):
        expected = [metric(MODEL(example(inputs, i))) for i in range(2)]
        chex.assert_trees_all_close(row, np.array(expected), atol=1e-5)


def test_growing_from_the_logits_reaches_both_towers():
    scores = circuits.discover(MODEL, task(), circuits.Random())
    every = circuits.greedy(scores, GRAPH.n_edges)
    assert every == circuits.Circuit.full(GRAPH)
    some = circuits.greedy(scores, 40, prune=False)
    assert some.n_edges == 40
    assert any(name.startswith("encoder") for name in some.nodes())


EDGES = (
    "encoder.a1.h0<v> <- source",
    "encoder.m2 <- encoder.a0.h1",
    "cross.a0<k> <- encoder.m0",
    "cross.a2<v> <- encoder.a1.h1",
    "cross.a1<q> <- decoder.m0",
    "decoder.a0.h1<q> <- cross.a0",
    "decoder.m1 <- target",
    "logits <- cross.a0",
    "logits <- decoder.a2.h1",
)


def test_exact_scores_are_those_of_substitution_by_hand():
    scores = circuits.discover(MODEL, task(), circuits.Exact(), keep_prompts=True)
    effects = []
    for i in range(2):
        clean, corrupt = (example(t, i) for t in (task().clean, task().corrupt))
        full, now = by_hand(clean, {})
        other = by_hand(corrupt, {})[1]
        for edge in EDGES:
            reader, sender = edge.split(" <- ")
            less = {reader: now[sender] - other[sender]}
            effects.append(full - by_hand(clean, less)[0])
            found = scores.prompts[i][GRAPH.edge(edge)]
            chex.assert_trees_all_close(found, np.asarray(effects[-1]), atol=1e-4)
    assert np.abs(effects).min() > 1e-4
    # Circuits without one edge say the same.
    full = circuits.Circuit.full(GRAPH)
    runs = [full, *(full.without(edge) for edge in EDGES)]
    whole, *each = circuits.run_circuits(MODEL, task(), runs)
    found = np.array(effects).reshape(2, -1).T
    chex.assert_trees_all_close(whole - np.array(each), found, atol=1e-4)


def test_attribution_is_the_gradient_of_substitution():
    found = circuits.discover(MODEL, task(), circuits.EAP(), keep_prompts=True)
    clean, corrupt = (example(t, 0) for t in (task().clean, task().corrupt))
    now, other = (by_hand(inputs, {})[1] for inputs in (clean, corrupt))
    for edge in EDGES:
        reader, sender = edge.split(" <- ")
        change = now[sender] - other[sender]
        slope = jax.grad(lambda a, r=reader, c=change: by_hand(clean, {r: a * c})[0])
        expected = np.asarray(-slope(0.0))
        chex.assert_trees_all_close(
            found.prompts[0][GRAPH.edge(edge)], expected, atol=1e-4
        )


def linear(inputs, start):
    """Towers of different widths in which everything is linear."""
    memory = start("encoder", source=inputs["source"], place=inputs["place"])
    for i in range(2):
        read = memory.read("encoder.mlp_in")
        memory = memory.add("encoder.mlp_out", read @ toys.weights(20 + i, 6, 6))
    stream = start("decoder", target=inputs["target"])
    for i in range(2):
        values = toys.weights(30 + i, 3, 5) @ memory.read("cross.v")
        stream = stream.write("cross.attn_out", values, toys.weights(40 + i, 6, 8))
        read = stream.read("mlp_in")
        stream = stream.add("mlp_out", read @ toys.weights(50 + i, 8, 8))
    return stream.read("logits")[0]


def test_attribution_is_exact_on_a_linear_model():
    shapes = {"source": (5, 6), "place": (5, 6), "target": (3, 8)}
    clean, corrupt = (
        {n: toys.weights(i + len(n), 2, *shape) for n, shape in shapes.items()}
        for i in (60, 70)
    )
    model = circuits.StreamModel(linear, example(clean, 0))
    given = circuits.Task(clean, corrupt, metric=metric)
    exact = circuits.discover(model, given, circuits.Exact())
    assert exact.graph.senders == (
        *("source", "place", "target", "encoder.m0", "encoder.m1"),
        *("cross.a0", "m0", "cross.a1", "m1"),
    )
    for method in (circuits.EAP(), circuits.EAPIG(steps=3)):
        found = circuits.discover(model, given, method)
        chex.assert_trees_all_close(found.values, exact.values, atol=1e-5)
    assert np.abs(exact.values[exact.graph.edges]).min() > 1e-4
    nodes = circuits.discover(model, given, circuits.EAP(level="node"))
    assert float(nodes["source"]) == pytest.approx(
        sum(float(exact[f"{r} <- source"]) for r in ("encoder.m0", "encoder.m1"))
        + sum(float(exact[f"cross.a{i}<v> <- source"]) for i in range(2)),
        abs=1e-5,
    )


@pytest.mark.parametrize(
    "method",
    [circuits.UGS(steps=2), circuits.EAPIGActivations(steps=1), circuits.Random()],
    ids=lambda method: type(method).__name__,
)
def test_other_methods_take_towers(method):
    scores = circuits.discover(MODEL, task(), method)
    assert np.isfinite(scores.values).all()
    assert not np.asarray(scores.values)[~GRAPH.edges].any()


@pytest.mark.parametrize(
    "method", [circuits.ACDC(), circuits.HISP(), circuits.InformationFlowRoutes()]
)
def test_methods_of_stacked_blocks_are_refused(method):
    with pytest.raises(mijax.MijaxError, match="needs a model of stacked blocks"):
        circuits.discover(MODEL, task(), method)


def reads(*names):
    def fn(x, start):
        stream = start("main", x=x)
        for name in names:
            if name.endswith("out"):
                stream = stream.add(name, x)
            else:
                stream.read(name)
        return x

    return fn


@pytest.mark.parametrize(
    ("fn", "said"),
    [
        (reads("mlp_in"), "last read is that of 'logits'; it reads.*: mlp_in"),
        (reads("logits", "mlp_in"), "last read is that of 'logits'"),
        (reads("m_out", "logits", "logits"), "last read is that of 'logits'"),
        (lambda x, start: x, "it reads.*: nothing"),
        (
            lambda x, start: (start("a", x=x), start("b", x=x).read("logits")),
            "Several terms have one name: x, x",
        ),
        (
            lambda x, start: (
                start("a", x=x).read("in"),
                (b := start("b", y=x)).read("in"),
                b.read("logits"),
            ),
            "port 'in' reads and writes, or",
        ),
    ],
)
def test_functions_without_a_graph(fn, said):
    with pytest.raises(mijax.MijaxError, match=said):
        circuits.Graph.of(circuits.StreamModel(fn, jnp.ones((2, 4))))


def test_inputs_of_other_shapes_are_refused():
    other = jax.tree.map(lambda a: a[:, :-1], task().clean)
    given = circuits.Task(other, other, metric=metric)
    with pytest.raises(mijax.MijaxError, match=r"takes inputs of shape .*\(5, 8\)"):
        circuits.discover(MODEL, given, circuits.EAP())
    with pytest.raises(mijax.MijaxError, match="one counterpart of equal length"):
        circuits.Task(task().clean, other, metric=metric)
    with pytest.raises(mijax.MijaxError, match="as many entries in every array"):
        circuits.Task({"a": jnp.ones((2, 3)), "b": jnp.ones(3)}, metric=metric)
    tiny = mijax.testing.tiny_gpt2(jax.random.key(0))
    with pytest.raises(mijax.MijaxError, match="take a task of tokens"):
        circuits.discover(tiny, task(), circuits.EAP())
