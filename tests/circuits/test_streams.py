"""Circuits of blocks of other kinds: norms after attention, none, two streams."""

import functools

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax import circuits, nn
from mijax._errors import SiteError
from mijax.circuits.forward._connected import Gate, Stream, connected, enter, score
from mijax.circuits.forward._ports import Ports, Recorder
from mijax.core import AbstractBlock, PlainStream
from mijax.core.internal import Sequence

METRIC = mijax.logit_difference(3, 4)
CLEAN = jnp.array([[5, 9, 2, 7, 11], [1, 2, 3, 4, 5]])
CORRUPT = CLEAN.at[:, 1].set(33).at[1, 3].set(40)
TASK = circuits.Task(CLEAN, CORRUPT, metric=METRIC)


class Sandwich(nn.Block):
    """Attention is one reader and one writer, with a norm after it."""

    cache = nn.Attention.cache
    by_row = ("mlp_in",)

    def __call__(self, stream, rows, past=None):
        z = self.attention(stream.read("attn_in", norm=self.norm_1), rows, past)
        out = self.norm_1(self.attention.out(z))
        stream = stream.keep(rows).add("attn_out", out)
        mlp = self.mlp(stream.read("mlp_in", norm=self.norm_2))
        return stream.add("mlp_out", self.norm_2(mlp))


class HeadsOfOne(nn.Block):
    """Each head reads for itself, and attention writes as a whole."""

    cache = nn.Attention.cache

    def __call__(self, stream, rows, past=None):
        heads = self.attention.heads
        inputs = stream.read("q", "k", "v", heads=heads, norm=self.norm_1)
        out = self.norm_1(self.attention.out(self.attention(inputs, rows, past)))
        stream = stream.keep(rows).add("attn_out", out)
        mlp = self.mlp(stream.read("mlp_in", norm=self.norm_2))
        return stream.add("mlp_out", mlp)


class Unstated(nn.Block):
    """States nothing of its rows, so nothing is assumed."""

    cache = nn.Attention.cache

    def __call__(self, stream, rows, past=None):
        return super().__call__(stream, rows, past)


class Twice(nn.Block):
    """Attends twice, to sites of one name."""

    def __call__(self, stream, rows, past=None):
        stream = super().__call__(stream, rows, past)
        z = self.attention(stream.read("again_in", norm=self.norm_2), rows)
        return stream.add("again_out", self.attention.out(z))


class Sums(AbstractBlock):
    """Sums over the tokens before, without attention."""

    weight: jax.Array

    def __call__(self, stream, rows, past=None):
        return stream.add("sum_out", jnp.cumsum(stream.read("sum_in"), 0) @ self.weight)


@functools.cache
def model(kind):
    plain = mijax.testing.tiny_gpt2(jax.random.key(0))
    old = jax.tree.map(lambda a: a[:2], plain.blocks)
    if kind is Sums:
        blocks = Sums(0.1 * jax.random.normal(jax.random.key(1), (2, 32, 32)))
    else:
        blocks = kind(old.norm_1, old.attention, old.norm_2, old.mlp)
    return eqx.tree_at(lambda m: m.blocks, plain, blocks)


@eqx.filter_jit
def plain(model, batch):
    """Runs blocks one by one, also those that verbs on sites refuse."""

    def one(tokens):
        rows = jnp.arange(len(tokens))
        x = model.embed(tokens, rows)
        arrays, static = eqx.partition(model.blocks, eqx.is_array)
        for i in range(model.n_layers):
            block = eqx.combine(jax.tree.map(lambda a, i=i: a[i], arrays), static)
            x = block(PlainStream(x), Sequence(rows)).x
        return model.unembed(model.normalise(x))

    return jax.vmap(one)(batch)


@eqx.filter_jit
def masked(model, graph, prompt, masks):
    reference = TASK.ablation.reference(model, graph, TASK, prompt)
    inputs = enter(model, graph, TASK.clean[prompt])

    def run(edges):
        ran = connected(
            model, graph, inputs, gate=Gate(edges=edges), reference=reference
        )
        return score(model, METRIC, ran.final, prompt)

    return jax.lax.map(run, masks, batch_size=16)


SENDERS = {
    Twice: (
        *("input", *(f"a0.h{i}" for i in range(4)), "m0", "again0"),
        *(*(f"a1.h{i}" for i in range(4)), "m1", "again1"),
    ),
    Sandwich: ("input", "a0", "m0", "a1", "m1"),
    HeadsOfOne: ("input", "a0", "m0", "a1", "m1"),
    Sums: ("input", "sum0", "sum1"),
}


@pytest.mark.parametrize("kind", SENDERS, ids=lambda kind: kind.__name__)
def test_nodes_are_what_writes(kind):
    graph = circuits.Graph.of(model(kind))
    assert graph.senders == SENDERS[kind]
    owners = {graph.owner(name) for name in graph.receivers[:-1]}
    assert owners == set(graph.senders[1:])
    assert graph.owner("logits") is None


@pytest.mark.parametrize("kind", SENDERS, ids=lambda kind: kind.__name__)
def test_full_is_the_clean_run_and_empty_the_corrupt_one(kind):
    graph = circuits.Graph.of(model(kind))
    masks = jnp.stack([jnp.ones(graph.edges.shape), jnp.zeros(graph.edges.shape)])
    ends = [METRIC(plain(model(kind), tokens)) for tokens in (CLEAN, CORRUPT)]
    for prompt in (0, 1):
        found = masked(model(kind), graph, jnp.int32(prompt), masks)
        expected = jnp.stack([end[prompt] for end in ends])
        chex.assert_trees_all_close(found, expected, atol=1e-4)


def test_attribution_of_a_model_without_attention_is_the_gradient_of_its_mask():
    one = model(Sums)
    graph = circuits.Graph.of(one)
    found = circuits.discover(one, TASK, circuits.EAP(), keep_prompts=True).prompts
    whole = jnp.ones((1, *graph.edges.shape))
    gradient = jax.grad(lambda m: masked(one, graph, jnp.int32(1), m)[0])(whole)
    chex.assert_trees_all_close(found[1], gradient[0], atol=1e-4)


@pytest.mark.parametrize(
    "kind",
    [Sandwich, HeadsOfOne, Unstated, Sums, Twice],
    ids=lambda kind: kind.__name__,
)
def test_exact_scores_are_those_of_patching_edge_by_edge(kind):
    graph = circuits.Graph.of(model(kind))
    scores = circuits.discover(model(kind), TASK, circuits.Exact(), keep_prompts=True)
    sender, receiver = np.nonzero(graph.edges)
    masks = jnp.ones((len(sender) + 1, *graph.edges.shape))
    masks = masks.at[jnp.arange(len(sender)), sender, receiver].set(0)
    *each, full = masked(model(kind), graph, jnp.int32(1), masks)
    found = scores.prompts[1][sender, receiver]
    np.testing.assert_allclose(found, full - np.array(each), atol=1e-4)
    assert np.abs(found).max() > 1e-2


@pytest.mark.parametrize("kind", [Sums, Twice], ids=lambda kind: kind.__name__)
def test_paths_of_any_block_are_its_edges(kind):
    graph = circuits.Graph.of(model(kind))
    exact = circuits.discover(model(kind), TASK, circuits.Exact())
    for receiver in (graph.receivers[-2], "logits"):
        direct = circuits.path_patch(
            model(kind), TASK, receiver, senders=graph.senders, through=()
        )
        edges = exact.values[:, graph.receiver(receiver)]
        chex.assert_trees_all_close(direct.values.mean(0), edges, atol=1e-4)


def test_importance_without_heads_is_the_gradient_by_a_mask():
    one = model(Sums)
    graph = circuits.Graph.of(one)
    zeros = jnp.zeros((3, 5, 32))

    def value(share, prompt):
        inputs = enter(one, graph, CLEAN[prompt])
        gate = Gate(nodes=share)
        ran = connected(one, graph, inputs, gate=gate, reference=zeros)
        return score(one, METRIC, ran.final, jnp.int32(prompt))

    each = [jax.grad(value)(jnp.ones((3, 1)), i)[1:, 0] for i in (0, 1)]
    parts = jnp.abs(jnp.stack(each)).mean(0)
    nodes = circuits.discover(one, TASK, circuits.HISP("node", normalise=False))
    chex.assert_trees_all_close(nodes.values[1:], parts, atol=1e-4)
    edges = circuits.discover(one, TASK, circuits.HISP(normalise=False))
    chex.assert_trees_all_close(edges.values[0, :-1], parts, atol=1e-4)


def test_names_that_occur_twice_and_blocks_that_write_first_are_refused():
    class Again(nn.Block):
        def __call__(self, stream, rows, past=None):
            stream = super().__call__(stream, rows, past)
            return stream.add("mlp_out", self.mlp(stream.read("mlp_in")))

    class First(nn.Block):
        def __call__(self, stream, rows, past=None):
            stream = stream.add("mlp_out", jnp.ones((1, 32)))
            return stream.add("attn_out", stream.read("attn_in"))

    with pytest.raises(SiteError, match="Again reads or writes twice as 'mlp_in'"):
        circuits.Graph.of(model(Again))
    with pytest.raises(SiteError, match="marks the site 'q' once"):
        mijax.run(model(Twice), CLEAN, mijax.Zero().at("z"))
    with pytest.raises(SiteError, match="First must read the stream before it writes"):
        circuits.Graph.of(model(First))


# An encoder and a decoder: cross-attention reads two streams.


class Encoder(eqx.Module):
    """Every token is transformed by itself."""

    weight: jax.Array

    def __call__(self, stream):
        return stream.add("mlp_out", jnp.tanh(stream.read("mlp_in")) @ self.weight)


class Decoder(eqx.Module):
    """Queries from its own stream, keys and values from the memory."""

    attention: nn.Attention

    def __call__(self, stream, memory, rows):
        q = stream.read("cross.q", heads=2)
        k, v = memory.read("cross.k", "cross.v", heads=2)
        z = self.attention((q, k, v), rows)
        return stream.write("cross.attn_out", z, self.attention.w_o)


def pair():
    draw = iter(jax.random.split(jax.random.key(5), 9))
    shapes = [(6, 2, 3)] * 3 + [(2, 3, 6)]
    weights = [jax.random.normal(next(draw), shape) for shape in shapes]
    encoder = Encoder(jax.random.normal(next(draw), (6, 6)))
    return encoder, Decoder(nn.Attention(*weights, causal=False)), draw


def test_a_receiver_reads_the_stream_of_another_tower():
    encoder, decoder, draw = pair()
    rows = Sequence(jnp.arange(4))
    source, target, sent, other = (
        jax.random.normal(next(draw), (4, 6)) for _ in range(4)
    )
    log = []
    decoder(Recorder(target, log), Recorder(source, log), rows)
    graph = circuits.Graph(("target",), 1, Ports(tuple(log)))
    assert graph.receivers[:3] == (
        *("cross.a0.h0<q>", "cross.a0.h1<q>", "cross.a0.h0<k>"),
    )
    assert graph.senders == ("target", "cross.a0.h0", "cross.a0.h1")

    memory = encoder(PlainStream(source))
    plain = decoder(PlainStream(target), memory, rows).x

    # `sent` is what the encoder's MLP passes, `other` what the target does.
    mask = jax.random.bernoulli(jax.random.key(6), 0.5, (1, 6)).astype(float)
    streams = [
        Stream(x, jnp.int32(0), graph, part[None], edges)
        for x, part, edges in (
            (target, other, mask),
            (memory.x, sent, jnp.roll(mask, 1)),
        )
    ]
    whole = [eqx.tree_at(lambda s: s.edges, s, jnp.ones((1, 6))) for s in streams]
    chex.assert_trees_all_close(decoder(*whole, rows).x, plain, atol=1e-5)
    found = decoder(*streams, rows).x

    a, out = decoder.attention, target
    for head in range(2):
        at = [head, 2 + head, 4 + head]
        keep = [
            mask[0, at[0]],
            jnp.roll(mask, 1)[0, at[1]],
            jnp.roll(mask, 1)[0, at[2]],
        ]
        q = (target - (1 - keep[0]) * other) @ a.w_q[:, head]
        k = (memory.x - (1 - keep[1]) * sent) @ a.w_k[:, head]
        v = (memory.x - (1 - keep[2]) * sent) @ a.w_v[:, head]
        pattern = jax.nn.softmax(q @ k.T / 3**0.5)
        out = out + pattern @ v @ a.w_o[head]
    chex.assert_trees_all_close(found, out, atol=1e-5)
    assert jnp.abs(found - plain).max() > 1e-2
