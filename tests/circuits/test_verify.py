"""Exact checks of a ranking, and path patching against runs made by hand."""

import functools

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from cases import model

import mijax
from mijax import circuits

METRIC = mijax.logit_difference(3, 4)


@functools.cache
def task():
    random = np.random.default_rng(1)
    clean, corrupt = random.integers(0, 60, (2, 3, 6))
    return circuits.Task(clean, corrupt, metric=METRIC)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_verified_effects_are_exact(name):
    exact = circuits.discover(model(name), task(), circuits.Exact(), keep_prompts=True)
    found = circuits.verify(model(name), task(), exact, top=20, sample=30, memory=2**18)
    assert found.names[:3] == tuple(entry.name for entry in exact.best(3))
    assert len(set(found.names)) == 50
    chex.assert_trees_all_close(np.asarray(found.exact.mean), found.estimate, atol=1e-4)
    # What was ranked by its exact effect leaves nothing larger behind.
    assert found.missed[0] == 0
    assert found.missed[2] < 0.2
    assert found.correlation > 0.9999
    assert found.rest == exact.graph.n_edges - 20


def test_a_poor_ranking_is_found_out():
    exact = circuits.discover(model("gpt2"), task(), circuits.Exact())
    upside_down = circuits.Scores(
        jnp.where(exact.values == 0, 0, 1 / (1e-3 + jnp.abs(exact.values))),
        *(None, None, exact.graph, "edge", "upside down"),
    )
    found = circuits.verify(model("gpt2"), task(), upside_down, top=10, sample=60)
    assert found.missed[1] > 0.5


def test_nodes_are_verified_too():
    nodes = circuits.discover(model("gpt2"), task(), circuits.EAP(level="node"))
    found = circuits.verify(model("gpt2"), task(), nodes, top=16, sample=0)
    clean, corrupt = task().clean, task().corrupt
    acts = mijax.capture(model("gpt2"), corrupt, mijax.Site("mlp_out"))
    base = METRIC(mijax.run(model("gpt2"), clean))
    edits = mijax.Patch(acts).at("mlp_out", layer=1)
    expected = base - METRIC(mijax.run(model("gpt2"), clean, edits))
    here = found.names.index("m1")
    chex.assert_trees_all_close(found.prompts[here], np.asarray(expected), atol=1e-4)
    assert found.missed == (0.0, 0.0, 1.0)


def by_hand(name, sender, letter, receiver, fixed):
    """Patches one path with plain runs, head by head."""
    m, (clean, corrupt) = model(name), (task().clean[0], task().corrupt[0])
    logits, acts = m(clean)
    z = acts.blocks.z.at[sender[0], :, sender[1]].set(
        m(corrupt)[1].blocks.z[sender[0], :, sender[1]]
    )
    edits = [mijax.Patch(z).at("z")]
    if fixed:
        edits.append(mijax.Patch(acts.blocks.mlp_out).at("mlp_out"))
    first, heard = m(clean, edits)
    base = METRIC(logits)
    if letter == "logits":
        return base - METRIC(first)
    source = getattr(heard.blocks, letter)
    patch = mijax.Patch(source).at(letter, layer=receiver[0], head=receiver[1])
    return base - METRIC(m(clean, patch)[0])


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize(
    ("name", "letter"), [("gpt2", "q"), ("llama", "k"), ("gpt2", "logits")]
)
def test_paths_are_those_patched_by_hand(name, letter, fixed):
    receiver = "logits" if letter == "logits" else f"a2.h1<{letter}>"
    found = circuits.path_patch(model(name), task(), receiver, through_mlps=not fixed)
    for sender in ((0, 2), (1, 0)):
        expected = by_hand(name, sender, letter, (2, 1), fixed)
        chex.assert_trees_all_close(found.values[0][sender], expected, atol=1e-4)
    if letter != "logits":
        # A head does not hear its own layer.
        chex.assert_trees_all_close(
            found.values[:, 2], 0 * found.values[:, 2], atol=1e-5
        )


def test_direct_paths_are_edges():
    exact = circuits.discover(model("gpt2"), task(), circuits.Exact())
    direct = circuits.path_patch(model("gpt2"), task(), "a2.h3<v>", through_mlps=False)
    for sender in ("a0.h1", "a1.h2"):
        layer, head = int(sender[1]), int(sender[4])
        edge = exact[f"a2.h3<v> <- {sender}"]
        chex.assert_trees_all_close(direct.values.mean(0)[layer, head], edge, atol=1e-4)


@pytest.mark.parametrize("receivers", ["logits", ("a2.h1<k>", "a1.h0<q>")])
def test_chosen_senders_are_columns_of_all(receivers):
    every = circuits.path_patch(model("llama"), task(), receivers)
    columns = dict(zip(every.senders, every.values.reshape(3, -1).T, strict=True))
    assert list(columns) == [f"a{i}.h{j}" for i in range(3) for j in range(4)]
    # Five are two batches, of which the second is filled up.
    names = ("a1.h2", "a0.h0", "a2.h3", "a0.h3", "a1.h0")
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


def test_other_heads_of_a_group_keep_their_key():
    """A query head's view of a key that two query heads share."""
    m, sender = model("llama"), (0, 2)
    found = circuits.path_patch(m, task(), "a2.h0<k>", senders="a0.h2")
    expected = by_hand("llama", sender, "k", (2, 0), fixed=False)
    chex.assert_trees_all_close(found.values[0, 0], expected, atol=1e-4)
    both = circuits.path_patch(m, task(), ("a2.h0<k>", "a2.h1<k>"), senders="a0.h2")
    assert float(jnp.abs(both.values - found.values).max()) > 1e-4


@pytest.mark.parametrize(
    ("receivers", "senders", "said"),
    [
        ("m1", None, "queries"),
        (("logits", "a1.h0<q>"), None, "alone"),
        ((), None, "one receiver"),
        ("a7.h0<q>", None, r"'a7\.h0<q>'.*form 'a2\.h3<q>'.*Did you mean 'a2\.h0<q>'"),
        ("L2H1", None, "'L2H1'.*Did you mean .*'a2.h1<k>'"),
        ((2, 1), None, r"\(2, 1\).*'logits'\. Did you mean .*'a2.h1<k>'"),
        (2, None, "must be a text or a sequence, got the int 2"),
        ("logits", (), "one sender"),
        ("logits", "L1H3", r"sender 'L1H3'.*Did you mean 'a1\.h3'"),
        ("logits", "m1", "sender 'm1'"),
    ],
)
def test_paths_that_cannot_be(unchecked, receivers, senders, said):
    with pytest.raises(mijax.MijaxError, match=said) as caught:
        circuits.path_patch(model("gpt2"), task(), receivers, senders=senders)
    assert len(str(caught.value)) < 250


def test_neurons_are_not_verified():
    neurons = circuits.discover(model("gpt2"), task(), circuits.EAP(level="neuron"))
    with pytest.raises(mijax.MijaxError, match="edges or nodes"):
        circuits.verify(model("gpt2"), task(), neurons)
