"""Path patching against frozen activations: plain runs, patched at sites."""

import functools

import chex
import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from cases import model
from compiles import compiles

import mijax
from mijax import circuits
from mijax.core import AbstractEdit

METRIC = mijax.logit_difference(3, 4)
MODELS = ("gpt2", "llama", "parallel")


@functools.cache
def task():
    random = np.random.default_rng(1)
    clean, corrupt = random.integers(0, 60, (2, 3, 6))
    return circuits.Task(clean, corrupt, metric=METRIC)


class Freeze(AbstractEdit):
    """Replaces what a mask names by the activation of another run."""

    source: object
    mask: object

    def __call__(self, x, place):
        layer = place.layer
        return jnp.where(self.mask[layer], self.source[layer, place.rows.position], x)


SITES = ("q", "k", "v", "z", "mlp_in", "mlp_out")


@eqx.filter_jit
def run(m, tokens, embed, frozen):
    """Runs a prompt with an embedding, and frozen activations at every site."""
    edits = [Freeze(*pair).at(site) for site, pair in frozen.items()]
    edits.append(mijax.Patch(embed).at("embed"))
    return m(tokens, edits)


def place(name):
    """Site, layer and head of a node or receiver."""
    node, _, letter = name.partition("<")
    layer, _, head = node[1:].partition(".h")
    if node[0] == "m":
        return "mlp", int(layer), None
    return letter[:1] or "z", int(layer), int(head)


def named(names, site, acts):
    """Mask of an activation: the nodes or receivers of this name."""
    mask = np.zeros((*acts.shape[:1], 1, *acts.shape[2:-1], 1), bool)
    for name in names:
        kind, layer, head = place(name)
        if kind == site.partition("_")[0]:
            mask[(layer, 0) if head is None else (layer, 0, head)] = True
    return mask


@functools.cache
def ends(name):
    m, prompts = model(name), (task().clean[0], task().corrupt[0])
    return [m(tokens) for tokens in prompts]


def by_hand(name, sender, receivers, through):
    """Freezes every node but the mediators, in a run in which the sender is corrupt."""
    m, tokens = model(name), task().clean[0]
    (logits, clean), (_, corrupt) = ends(name)
    live = {site: getattr(clean.blocks, site) for site in SITES}
    frozen = {site: (acts, named((), site, acts)) for site, acts in live.items()}
    heads = [f"a{i}.h{j}" for i in range(3) for j in range(4)]
    others = [n for n in (*heads, "m0", "m1", "m2") if n not in through]
    for site in ("z", "mlp_out"):
        mine = named(() if sender == "input" else (sender,), site, live[site])
        source = jnp.where(mine, getattr(corrupt.blocks, site), live[site])
        frozen[site] = source, named(others, site, source) | mine
    embed = corrupt.embed if sender == "input" else clean.embed
    first, heard = run(m, tokens, embed, frozen)
    if receivers == ("logits",):
        return METRIC(logits) - METRIC(first)
    for site in SITES:
        mask = named(() if site in ("z", "mlp_out") else receivers, site, live[site])
        frozen[site] = getattr(heard.blocks, site), mask
    return METRIC(logits) - METRIC(run(m, tokens, clean.embed, frozen)[0])


MLPS = ("m0", "m1", "m2")
# Sender, receivers, mediators; the published form has all MLPs as mediators.
CASES = [
    ("a0.h2", ("a2.h1<q>",), MLPS),
    ("a1.h0", ("a2.h0<k>",), MLPS),
    ("a1.h3", ("logits",), MLPS),
    ("a0.h1", ("a2.h3<v>",), ()),
    ("m0", ("m2",), MLPS),
    ("m0", ("m2",), ()),
    ("m0", ("a2.h1<v>",), ("a1.h3",)),
    ("a0.h2", ("m2",), ("a1.h3", "m1")),
    ("input", ("a1.h1<q>", "m1"), ()),
    ("input", ("logits",), ("a0.h1", "m1")),
    ("m1", ("logits",), ("a2.h0", "a2.h2")),
    ("m0", ("a1.h0<k>", "m1", "a2.h3<v>", "m2"), ("m1",)),
    ("m1", ("a2.h0<q>", "a1.h2<v>"), MLPS),
]


@pytest.mark.parametrize("name", MODELS)
def test_paths_are_those_of_frozen_activations(name):
    effects = []
    for sender, receivers, through in CASES:
        found = circuits.path_patch(
            *(model(name), task(), receivers),
            senders=sender,
            through=None if through == MLPS else through,
        )
        effects.append(by_hand(name, sender, receivers, through))
        chex.assert_trees_all_close(found.values[0, 0], effects[-1], atol=1e-4)
    assert np.abs(effects).min() > 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_direct_paths_are_edges(name):
    exact = circuits.discover(model(name), task(), circuits.Exact())
    for receiver in ("a2.h3<v>", "m2", "logits"):
        direct = circuits.path_patch(
            *(model(name), task(), receiver),
            senders=exact.graph.senders,
            through=(),
        )
        edges = exact.values[:, exact.graph.receiver(receiver)]
        chex.assert_trees_all_close(direct.values.mean(0), edges, atol=1e-4)


def test_a_mediator_can_be_one_input_of_a_head():
    """Through queries, keys and values at once is through the head, not their sum."""
    find = functools.partial(
        circuits.path_patch, model("gpt2"), task(), "m2", senders="m0"
    )
    parts = [f"a1.h2<{letter}>" for letter in "qkv"]
    whole, direct = find(through="a1.h2").values, find(through=()).values
    chex.assert_trees_all_close(find(through=parts).values, whole, atol=1e-6)
    values = find(through="a1.h2<v>").values
    assert float(jnp.abs(values - direct).max()) > 1e-3
    assert float(jnp.abs(values - whole).max()) > 1e-3


def test_another_ablation_replaces_the_sender():
    zero = circuits.Task(task().clean, metric=METRIC, ablation=circuits.Zero())
    found = circuits.path_patch(model("gpt2"), zero, "logits", through=())
    exact = circuits.discover(model("gpt2"), zero, circuits.Exact())
    edges = exact.values[[exact.graph.sender(name) for name in found.senders], -1]
    chex.assert_trees_all_close(found.values.mean(0).reshape(-1), edges, atol=1e-4)


def test_senders_of_a_port():
    shapes = {}
    for port in (None, "attn_out", "mlp_out"):
        found = circuits.path_patch(model("gpt2"), task(), "logits", senders=port)
        shapes[port] = found.values.shape
    assert shapes == {None: (3, 3, 4), "attn_out": (3, 3, 4), "mlp_out": (3, 3)}
    assert found.senders == MLPS


@pytest.mark.parametrize("receivers", ["logits", ("a2.h1<k>", "a1.h0<q>", "m1")])
def test_chosen_senders_are_columns_of_all(receivers):
    every = circuits.path_patch(model("llama"), task(), receivers)
    columns = dict(zip(every.senders, every.values.reshape(3, -1).T, strict=True))
    assert list(columns) == [f"a{i}.h{j}" for i in range(3) for j in range(4)]
    # Six are two batches, of which the second is filled up.
    names = ("a1.h2", "a0.h0", "a2.h3", "a0.h3", "a1.h0", "a1.h1")
    for chosen in (names, "a1.h2"):
        done = []
        found = circuits.path_patch(
            *(model("llama"), task(), receivers),
            senders=chosen,
            progress=lambda *now, done=done: done.append(now),
        )
        assert found.senders == ((chosen,) if isinstance(chosen, str) else chosen)
        expected = jnp.stack([columns[name] for name in found.senders], 1)
        chex.assert_trees_all_close(found.values, expected, atol=1e-5)
        assert done[-1] == (len(found.senders),) * 2
    assert float(jnp.abs(expected).max()) > 1e-3


def test_one_program_serves_all_receivers_and_mediators():
    find = functools.partial(circuits.path_patch, model("gpt2"), task(), senders="m0")
    find("m1")
    with compiles() as programs:
        find("a2.h1<q>", through=())
        find(("m2", "a1.h0<k>"), through="a1.h3")
    assert "_patched" not in " ".join(map(str, programs))
    assert len(programs) <= 2, programs


def test_receivers_before_a_sender_do_not_read_it():
    receivers = ("a1.h0<q>", "m1")
    found = circuits.path_patch(model("gpt2"), task(), receivers, senders=["a2.h0"])
    chex.assert_trees_all_close(found.values, 0 * found.values, atol=1e-5)


def test_other_heads_of_a_group_keep_their_key():
    """A query head's view of a key that two query heads share."""
    m = model("llama")
    found = circuits.path_patch(m, task(), "a2.h0<k>", senders="a0.h2")
    both = circuits.path_patch(m, task(), ("a2.h0<k>", "a2.h1<k>"), senders="a0.h2")
    assert float(jnp.abs(both.values - found.values).max()) > 1e-4


@pytest.mark.parametrize(
    ("receivers", "options", "said"),
    [
        (("logits", "a1.h0<q>"), {}, "the only receiver"),
        ((), {}, "one receiver"),
        (
            "a7.h0<q>",
            {},
            r"'a7\.h0<q>'.*form 'a2\.h3<q>'.*Did you mean 'a2\.h0<q>'",
        ),
        ("L2H1", {}, "'L2H1'.*Did you mean .*'a2.h1<k>'"),
        ((2, 1), {}, r"\(2, 1\).*'logits'\. Did you mean .*'a2.h1<k>'"),
        (2, {}, "must be a text or a sequence, got the int 2"),
        ("logits", {"senders": ()}, "one sender"),
        ("logits", {"senders": "L1H3"}, r"sender 'L1H3'.*Did you mean 'a1\.h3'"),
        ("logits", {"senders": "mlp_in"}, "sender 'mlp_in'"),
        ("logits", {"through": "logits"}, "mediator 'logits'"),
        ("m2", {"through": ["m1", "m9"]}, "mediator 'm9'"),
    ],
)
def test_paths_that_cannot_be(unchecked, receivers, options, said):
    with pytest.raises(mijax.MijaxError, match=said) as caught:
        circuits.path_patch(model("gpt2"), task(), receivers, **options)
    assert len(str(caught.value)) < 250


def test_a_counterfactual_needs_corrupt_prompts():
    alone = circuits.Task(task().clean, metric=METRIC)
    with pytest.raises(mijax.MijaxError, match="needs corrupt prompts"):
        circuits.path_patch(model("gpt2"), alone, "logits")
