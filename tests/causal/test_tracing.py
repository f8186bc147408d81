"""Causal tracing: against a plain loop, and a planted fact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CLEAN, LENGTHS, model

import mijax
from mijax import causal, nn
from mijax._errors import ConfigError, PositionError, ShapeError, SiteError
from mijax.data import Prompts

SPANS = [(1, 4), (0, 1), (3, 5)]
NOISE = causal.SubjectNoise(jax.random.key(1), 1.5, copies=3)


def prompts():
    rows = zip(CLEAN.tolist(), LENGTHS.tolist(), strict=True)
    return Prompts.from_ids([r[:n] for r, n in rows], spans={"subject": SPANS})


def loop(one, restore):
    """Run every cell of every prompt and copy by itself."""
    scores, clean, corrupt = np.full((3, 3, 7), np.nan), np.zeros(3), np.zeros(3)
    run = jax.jit(lambda tokens, edits: jax.nn.softmax(one(tokens, edits)[0][-1]))
    for p, (start, stop) in enumerate(SPANS):
        tokens = CLEAN[p, : LENGTHS[p]]
        acts = mijax.capture(one, tokens, restore.site)
        plain = run(tokens, mijax.compose())
        best = plain.argmax()
        clean[p] = plain[best]
        cells = np.zeros((3, 3, len(tokens)))
        for copy in range(3):
            noise = []
            for place in range(stop - start):
                key = jax.random.fold_in(jax.random.fold_in(NOISE.key, copy), place)
                row = 1.5 * jax.random.normal(key, (32,))
                noise.append(mijax.Add(row).at("embed", position=start + place))
            corrupt[p] += run(tokens, mijax.compose(*noise))[best] / 3
            for layer, at in np.ndindex(3, len(tokens)):
                patches = [
                    mijax.Set(acts[i, at]).at(restore.site, layer=i, position=at)
                    for i in restore.windows(3)[str(layer)]
                ]
                cells[copy, layer, at] = run(tokens, mijax.compose(*noise, *patches))[
                    best
                ]
        scores[p, :, : len(tokens)] = cells.mean(0)
    return scores, clean, corrupt


@pytest.mark.parametrize(
    "restore", [causal.Restore(), causal.Restore("mlp_out", width=2)]
)
def test_it_is_the_loop_over_prompts_copies_and_cells(restore):
    one = model("gpt2")
    found = causal.causal_trace(one, prompts(), NOISE, restore=restore)
    scores, clean, corrupt = loop(one, restore)
    np.testing.assert_allclose(found.clean, clean, atol=1e-5)
    np.testing.assert_allclose(found.corrupt, corrupt, atol=1e-5)
    np.testing.assert_allclose(found.scores, scores, atol=1e-5)
    # Restoring everything after the last block at the last token is the clean run.
    if restore.site == "resid_post":
        last = found.scores[jnp.arange(3), 2, LENGTHS - 1]
        np.testing.assert_allclose(last, clean, atol=1e-5)
    assert np.nanmax(np.abs(found.effects())) > 0.01


def test_windows_are_those_of_the_paper():
    windows = causal.Restore("mlp_out", width=10).windows(48)
    for layer in range(48):
        expected = range(max(0, layer - 5), min(48, layer - (-10 // 2)))
        assert windows[str(layer)] == expected
    assert causal.Restore("z", width=3).windows(4)["2"] == range(1, 4)
    assert causal.Restore().windows(3)["1"] == range(1, 2)


def test_batches_and_some_positions_are_the_whole():
    one, given = model("gpt2"), prompts()
    whole = causal.causal_trace(one, given, NOISE, answer=[4, 5, 6])
    place = {"last subject": given.position("subject"), "last": given.last}
    parts = causal.causal_trace(
        one, given, NOISE, answer=jnp.array([4, 5, 6]), position=place, batch=2
    )
    assert parts.positions == ("last subject", "last")
    assert parts.answer.tolist() == [4, 5, 6]
    rows = np.arange(3)[:, None]
    at = np.stack([np.asarray(a) for a in place.values()], 1)
    expected = np.asarray(whole.scores).swapaxes(1, 2)[rows, at].swapaxes(1, 2)
    np.testing.assert_allclose(parts.scores, expected, atol=1e-6)
    np.testing.assert_allclose(parts.corrupt, whole.corrupt, atol=1e-6)


def test_roles():
    given = prompts()
    roles = causal.subject_roles(given)
    rows = {name: [np.flatnonzero(m).tolist() for m in r] for name, r in roles.items()}
    assert rows == {
        "first subject": [[1], [0], [3]],
        "middle subject": [[2], [], []],
        "last subject": [[3], [0], [4]],
        "first after": [[4], [1], [5]],
        "further": [[5], [2, 3], []],
        "last": [[6], [4], [6]],
    }
    values = jnp.arange(21.0).reshape(3, 1, 7)
    zero = jnp.zeros(3)
    answers = jnp.zeros(3, int)
    trace = causal.CausalTrace(values, zero + 2, zero + 1, answers, ("",) * 7)
    found = trace.by_role(given)
    np.testing.assert_allclose(found["further"][:, 0], [4, 8.5, np.nan])
    np.testing.assert_allclose(found["last"][:, 0], [5, 10, 19])
    assert trace.total_effect().mean == 1


def planted():
    """A memory: the second MLP writes a subject's attribute, the third layer moves it.

    Tokens are 0, three subjects 1 to 3, the last token 4, attributes 5 to 7; the stream
    has a dimension for each and three more for attributes.
    """
    layers, width = 3, 11
    zero = np.zeros
    q, k, v = zero((layers, width, 1, 3)), zero((layers, width, 1, 3)), None
    v, o = zero((layers, width, 1, 3)), zero((layers, 1, 3, width))
    q[2, 4, 0, 0] = 30.0  # the last token looks
    k[2, 8:, 0, 0] = 1.0  # for an attribute
    v[2, 8:, 0] = o[2, 0, :, 8:] = np.eye(3)
    w_in, w_out = zero((layers, width, 3)), zero((layers, 3, width))
    w_in[1, 1:4], w_out[1, :, 8:] = np.eye(3), 10 * np.eye(3)
    table = np.eye(8, width)
    head = zero((8, width))
    head[5:, 8:] = np.eye(3)
    array = lambda a: jnp.asarray(a, jnp.float32)  # noqa: E731
    attention = nn.Attention(w_q=array(q), w_k=array(k), w_v=array(v), w_o=array(o))
    mlp = nn.MLP(
        w_in=array(w_in),
        w_out=array(w_out),
        b_in=None,
        b_out=None,
        activation=nn.ReLU(),
    )
    return nn.Transformer(
        embedding=nn.Embedding(array(table)),
        positions=None,
        blocks=nn.Block(nn.Identity(), attention, nn.Identity(), mlp),
        norm=nn.Identity(),
        unembedding=nn.Unembedding(array(head)),
    )


def facts():
    rows = [[0, s, 0, 0, 4] for s in (1, 2, 3)] + [[2, 0, 4]]
    spans = [(1, 2)] * 3 + [(0, 1)]
    return Prompts.from_ids(rows, spans={"subject": spans})


def other_facts():
    return Prompts.from_ids([[0, s, 0, 0, 4] for s in (2, 3, 1)] + [[1, 0, 4]])


@pytest.mark.parametrize(
    "corruption",
    [
        causal.SubjectNoise(jax.random.key(0), 3.0, copies=4),
        causal.Replacement(other_facts()),
    ],
)
def test_a_planted_fact_is_found_where_it_is(corruption):
    one, given = planted(), facts()
    states = causal.causal_trace(one, given, corruption)
    assert states.answer.tolist() == [5, 6, 7, 6]
    assert (states.clean > 0.99).all()
    assert states.total_effect().mean > 0.3
    roles = states.by_role(given)
    whole = np.asarray(states.clean - states.corrupt)
    none = np.zeros(4)
    for role, layers in {
        "last subject": (whole, whole, none),
        "further": (none, none, none),
        "last": (none, none, whole),
    }.items():
        found = np.nan_to_num(np.asarray(roles[role]))
        np.testing.assert_allclose(found, np.stack(layers, 1), atol=1e-3)
    mlps = causal.Restore("mlp_out")
    part = causal.causal_trace(one, given, corruption, restore=mlps)
    found = np.asarray(part.by_role(given)["last subject"])
    np.testing.assert_allclose(found[:, [0, 2]], 0, atol=1e-3)
    # Noise also stays in the dimensions of attributes; another subject has none there.
    assert found[:, 1].mean() > 0.7 * whole.mean()


def test_paths_are_cut():
    """Without the second MLP a restored subject says nothing; its output still does."""
    one, given = planted(), facts()
    corruption = causal.Replacement(other_facts())
    place = {"last subject": given.position("subject")}
    cut = causal.causal_trace(
        one, given, corruption, position=place, severed=("mlp_out",)
    )
    whole, none = np.asarray(cut.clean - cut.corrupt), np.zeros(4)
    found = cut.effects()[..., 0]
    np.testing.assert_allclose(found, np.stack([none, whole, none], 1), atol=1e-3)
    mlps = causal.Restore("mlp_out")
    part = causal.causal_trace(one, given, corruption, restore=mlps, position=place)
    found = part.effects()[..., 0]
    np.testing.assert_allclose(found, np.stack([none, whole, none], 1), atol=1e-3)


def test_knocked_out_attention_is_found_where_it_reads():
    one, given = planted(), facts()
    cut = {"target": "last", "answer": jnp.array([5, 6, 7, 6])}
    found = causal.attention_knockout(one, given, source="subject", width=1, **cut)
    assert (found.base > 0.99).all()
    plain = np.repeat(found.base[:, None], 2, axis=1)
    np.testing.assert_allclose(found.values[:, :2], plain, atol=1e-6)
    np.testing.assert_allclose(found.values[:, 2], 1 / 8, atol=0.01)
    wide = causal.attention_knockout(one, given, source="subject", width=3, **cut)
    np.testing.assert_allclose(wide.values[:, 1], 1 / 8, atol=0.01)
    # The token before the subject, or after it: its neighbors stay readable.
    spans = given.spans | {"other": (jnp.array([0, 0, 0, 1]), jnp.array([1, 1, 1, 2]))}
    control = Prompts(given.tokens, given.lengths, spans, given.texts)
    found = causal.attention_knockout(one, control, source="other", width=3, **cut)
    assert (found.values > 0.99).all()


def test_deviation_is_that_of_the_subjects_tokens():
    one = model("gpt2")
    subjects = Prompts.from_ids([[5, 6], [7], [5]])
    rows = np.asarray(one.embedding.weight)[[5, 6, 7, 5]]
    found = causal.subject_deviation(one, subjects)
    np.testing.assert_allclose(found, rows.std(), rtol=1e-5)


def test_refuses():
    one, given = model("gpt2"), prompts()
    with pytest.raises(PositionError, match="no place 'subject'"):
        causal.causal_trace(one, Prompts.from_ids([[1, 2]]), NOISE)
    with pytest.raises(ConfigError, match="give one, such as"):
        causal.causal_trace(one, given, NOISE, severed=("mlp_out",))
    with pytest.raises(SiteError, match="mlp_uot"):
        causal.causal_trace(one, given, NOISE, restore=causal.Restore("mlp_uot"))
    with pytest.raises(PositionError, match="are equal"):
        causal.causal_trace(one, given, causal.Replacement(given))
    short = Prompts.from_ids([[1, 2, 3]] * 3)
    with pytest.raises(PositionError, match="tokens and its counterpart"):
        causal.causal_trace(one, given, causal.Replacement(short))
    with pytest.raises(ConfigError, match="above 0"):
        causal.SubjectNoise(jax.random.key(0), 0.0)
    with pytest.raises(ConfigError, match="1 layer or more"):
        causal.Restore("mlp_out", width=0)
    cut = {"source": "last", "target": "subject", "answer": 3}
    with pytest.raises(PositionError, match="attend only to earlier"):
        causal.attention_knockout(one, given, **cut)
    for position in ({"x": given.last[:2]}, {"x": given.lengths}, {"x": -1}):
        with pytest.raises(PositionError, match="one for each of"):
            causal.causal_trace(one, given, NOISE, position=position)
    with pytest.raises(ConfigError, match="1 or more"):
        causal.causal_trace(one, given, NOISE, batch=0)
    with pytest.raises(ShapeError, match="a token id, or one for each"):
        causal.causal_trace(one, given, NOISE, answer=[1, 2])
    place = {"last": given.last}
    some = causal.causal_trace(one, given, NOISE, position=place)
    with pytest.raises(ShapeError, match="at every position"):
        some.by_role(given)
