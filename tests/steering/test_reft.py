"""Representation finetuning: forward passes, the optimizer, and what is learned."""

from pathlib import Path

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax import steering
from mijax.data import Prompts
from mijax.steering import DiReFT, LoReFT, TrainDiReFT, TrainLoReFT, TrainReFTr1
from mijax.steering._reft import top_latents
from mijax.steering._reft_kinds import real_tokens

with np.load(Path(__file__).parents[1] / "golden/steering/reft.npz") as _file:
    GOLDEN = dict(_file)
RNG = np.random.default_rng(0)
# The answer to everything is tokens 60 and 61.
IDS = [[*map(int, RNG.integers(0, 50, n)), 60, 61] for n in (5, 3, 6, 4, 5, 6, 3, 4)]
PROMPTS = Prompts.from_ids(
    IDS, spans={"answer": [(len(row) - 2, len(row)) for row in IDS]}
)
QUESTIONS = Prompts.from_ids([row[:-2] for row in IDS])


def golden(prefix, *names):
    return (jnp.asarray(GOLDEN[f"{prefix}_{name}"]) for name in names)


def test_loreft_is_its_formula():
    h, rotate, weight, bias, out = golden("lo", "h", "rotate", "weight", "bias", "out")
    edit = LoReFT(rotate, weight, bias)
    np.testing.assert_allclose(edit.rotation(), rotate, atol=1e-6)
    np.testing.assert_allclose(edit(h, None), out, atol=1e-5)
    # Free parameters of any length and angle give orthonormal rows.
    rows = LoReFT.start(jax.random.key(0), width=12, rank=3).rotation()
    np.testing.assert_allclose(rows @ rows.T, np.eye(3), atol=1e-6)


def test_loreft_without_a_source_sets_the_projection():
    h, rotate, bias = golden("lo", "h", "rotate", "bias")
    found = LoReFT(rotate, 0 * rotate, bias)(h, None)
    np.testing.assert_allclose(
        found @ rotate.T, np.broadcast_to(bias, (5, 3)), atol=1e-5
    )
    outside = np.eye(12) - rotate.T @ rotate
    np.testing.assert_allclose(found @ outside, h @ outside, atol=1e-5)
    np.testing.assert_allclose(LoReFT(rotate, rotate, 0 * bias)(h, None), h, atol=1e-5)


def test_direft_is_its_formula():
    h, down, up, bias, out = golden("di", "h", "down", "up", "bias", "out")
    np.testing.assert_allclose(DiReFT(down, up, bias)(h, None), out, atol=1e-5)
    start = DiReFT.start(jax.random.key(0), width=12, rank=3)
    np.testing.assert_array_equal(start(h, None), h)


def test_latents_of_r1_are_their_formula():
    h, v, lengths, top, rest = golden("r1", "h", "v", "lengths", "top", "rest")
    kind = TrainReFTr1(k=2, penalty=0.5)
    tokens = jnp.zeros((2, 7), jnp.int32)
    found, penalty = kind.strengths(v, (tokens, lengths, None, h), jnp.float32(0.25))
    np.testing.assert_allclose(found, top, rtol=1e-5)
    np.testing.assert_allclose(penalty, 0.25 * 0.5 * rest, rtol=1e-5)
    latents = jnp.array([[3.0, 1.0, 2.0]])
    mean, others = top_latents(latents, 9)
    assert (mean.tolist(), others.tolist()) == ([2.0], [[0.0, 0.0, 0.0]])
    assert real_tokens(tokens, lengths)[1].tolist() == [
        False,
        *[True] * 4,
        False,
        False,
    ]


def test_the_optimizer_of_r1_takes_the_steps_of_torch():
    v, gradients, path = golden("sphere", "start", "gradients", "path")
    rule = TrainReFTr1().optimizer(len(gradients))
    state = rule.init(v)
    for gradient, expected in zip(gradients, path, strict=True):
        change, state = rule.update(gradient, state, v)
        v = v + change
        np.testing.assert_allclose(v, expected, atol=2e-6)


KINDS = {
    "LoReFT": TrainLoReFT(rank=4, learning_rate=0.05),
    "DiReFT": TrainDiReFT(rank=2, learning_rate=0.05),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_learns_the_answer(kind):
    model = cases.model("gpt2")
    # Only the last token before the answer is edited, so only the first is learned.
    ends = (0, 1) if kind == "DiReFT" else None
    made = steering.train_reft(
        model, KINDS[kind], PROMPTS, layer=1, steps=80, batch=4, ends=ends
    )
    assert len(made.losses) == 80
    edits = made.edits(QUESTIONS)
    new = mijax.generate(model, QUESTIONS, steps=2, edits=edits)
    assert (new[:, 0] == 60).all()
    plain = mijax.generate(model, QUESTIONS, steps=2)
    assert (plain[:, 0] != 60).all()
    if ends is None:
        assert (new[:, 1] == 61).all()
        return
    # Tokens before the last one are as they were.
    site = mijax.Site("resid_post")
    acts, before = (mijax.capture(model, QUESTIONS, site, e) for e in (edits, None))
    changed = np.asarray(acts != before).any((1, 3)) & np.asarray(QUESTIONS.mask)
    last = np.arange(6) == np.asarray(QUESTIONS.last)[:, None]
    np.testing.assert_array_equal(changed, last)


def test_r1_finds_a_unit_vector_that_steers():
    model = cases.model("gpt2")
    kind = TrainReFTr1(k=2, learning_rate=0.05)
    made = steering.train_reft(model, kind, PROMPTS, layer=2, steps=60, batch=4)
    found = made.edit
    np.testing.assert_allclose(jnp.linalg.norm(found.vector), 1, rtol=1e-5)
    acts = mijax.capture(model, PROMPTS, mijax.Site("resid_post", layer=2))
    real = real_tokens(PROMPTS.tokens, PROMPTS.lengths)
    latents = jnp.where(real, jax.nn.relu(acts @ found.vector), 0)
    np.testing.assert_allclose(found.largest, latents.max(), rtol=1e-5)
    made = found.directions()
    np.testing.assert_allclose(made.norms(), [found.largest], rtol=1e-5)
    loss = mijax.cross_entropy(60, position=QUESTIONS.last)
    steered, control = (
        loss(mijax.run(model, QUESTIONS, one.add(1.0))).mean()
        for one in (made, made.random(jax.random.key(1)))
    )
    assert steered < control - 1
    assert steered < loss(mijax.run(model, QUESTIONS)).mean() - 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: LoReFT.start(jax.random.key(0), width=4, rank=5), "rank must be 1"),
        (
            lambda m: steering.train_reft(
                m, TrainLoReFT(), QUESTIONS, layer=1, steps=1
            ),
            "no place 'answer'",
        ),
        (
            lambda m: steering.train_reft(
                m, TrainLoReFT(), PROMPTS, layer=1, steps=1, batch=9
            ),
            "batch must be 1 to 8",
        ),
        (
            lambda m: steering.train_reft(m, TrainLoReFT(), PROMPTS, layer=3, steps=1),
            "layer 3 is out of range",
        ),
        (
            lambda m: mijax.run(
                m,
                cases.CLEAN,
                LoReFT.start(jax.random.key(0), width=4, rank=1).at(
                    "resid_post", layer=0
                ),
            ),
            "width 4, and the site 32",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(mijax.MijaxError, match=message):
        call(cases.model("gpt2"))
