"""Steering as an edit: in runs, sweeps, captures and generation, per row and span."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CLEAN, LENGTHS

import mijax
import mijax.core.internal
from mijax import dictionaries, steering
from mijax.data import Prompts
from mijax.steering import Directions, Steer

VECTORS = jax.random.normal(jax.random.key(7), (2, 32))
MADE = Directions(VECTORS, layers=[0, 2])
PROMPTS = Prompts.from_ids(
    [np.asarray(row[:n]).tolist() for row, n in zip(CLEAN, LENGTHS, strict=True)]
)
SCALES = {
    "raw": steering.Raw(),
    "token": steering.TokenNorm(),
    "layer": steering.LayerNumber([2.0, 3.0, 4.0]),
}
LIMITS = {"none": None, "same": steering.SameNorm(), "no growth": steering.NoGrowth()}
SPANS = {
    "all": None,
    "prompt": steering.prompt_only(PROMPTS),
    "generated": steering.after_prompt(PROMPTS),
    "last two": steering.after_prompt(PROMPTS, last=2),
}


def by_hand(x, vector, strength, scale, limit, layer):
    """Steer one token in NumPy."""
    x, vector = np.float64(x), np.float64(vector)
    unit = vector / np.linalg.norm(vector)
    step = {
        "raw": vector,
        "token": np.linalg.norm(x) * unit,
        "layer": (2.0 + layer) * unit,
    }[scale]
    new = x + strength * step
    ratio = np.linalg.norm(x) / np.linalg.norm(new)
    if limit == "same" or (limit == "no growth" and ratio < 1):
        new = new * ratio
    return new


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("scale", SCALES)
def test_an_edit_is_its_formula(scale, limit):
    model = cases.model("gpt2")
    edits = MADE.add(1.5, scale=SCALES[scale], limit=LIMITS[limit])
    names = ["resid_mid", "mlp_out", "resid_post"]
    acts = mijax.capture(model, CLEAN, {n: mijax.Site(n) for n in names}, edits)
    before = np.asarray(acts["resid_mid"] + acts["mlp_out"])
    found = np.asarray(acts["resid_post"])
    np.testing.assert_allclose(found[:, 1], before[:, 1], rtol=1e-5, atol=1e-5)
    for layer, vector in zip((0, 2), VECTORS, strict=True):
        for prompt, token in ((0, 0), (2, 5)):
            x = before[prompt, layer, token]
            expected = by_hand(x, vector, 1.5, scale, limit, layer)
            np.testing.assert_allclose(
                found[prompt, layer, token], expected, rtol=1e-5, atol=1e-5
            )


@pytest.mark.parametrize("limit", LIMITS)
def test_strength_0_is_the_identity_bit_for_bit(limit):
    model = cases.model("llama")
    plain = mijax.run(model, CLEAN)
    none = MADE.add(0.0, limit=LIMITS[limit], scale=steering.TokenNorm())
    np.testing.assert_array_equal(mijax.run(model, CLEAN, none), plain)
    some = MADE.add(mijax.PerPrompt([0.0, 1.0, 0.0]), limit=LIMITS[limit])
    steered = mijax.run(model, CLEAN, some)
    np.testing.assert_array_equal(steered[::2], plain[::2])
    assert (steered[1] != plain[1]).any()
    # Signs of zeros are kept too.
    rows = mijax.core.internal.Sequence(jnp.arange(2))
    place = mijax.core.Place(rows, jnp.int32(0))
    zeros = jnp.full((2, 32), -0.0)
    assert np.signbit(np.asarray(MADE.steer(0.0)(zeros, place))).all()


@pytest.mark.parametrize("span", ["all", "prompt", "last two"])
def test_batch_is_loop_and_padded_is_single(span):
    model = cases.model("gpt2")
    strengths, position = [0.5, -2.0, 3.0], SPANS[span]
    found = mijax.run(
        model, PROMPTS, MADE.add(mijax.PerPrompt(strengths), position=position)
    )
    for i, n in enumerate(LENGTHS):
        cut = None if position is None else slice(*_of(position, i))
        alone = MADE.add(strengths[i], position=cut)
        single = mijax.run(model, CLEAN[i, :n], alone)
        np.testing.assert_allclose(found[i, :n], single, rtol=1e-4, atol=1e-4)


def _of(position, i):
    stop = position.stop
    start = position.start
    return (
        int(start if jnp.ndim(start) == 0 else start[i]),
        None if stop is None else int(stop[i]),
    )


EDITS = {
    "raw": lambda position: MADE.add(
        mijax.PerPrompt([0.5, -2.0, 3.0]), position=position
    ),
    "token norm": lambda position: MADE.add(
        0.7, scale=steering.TokenNorm(), limit=steering.SameNorm(), position=position
    ),
    "a vector per row": lambda position: Steer(
        mijax.PerPrompt(jax.random.normal(jax.random.key(3), (3, 1, 32))),
        [1],
        2.0,
        limit=steering.NoGrowth(),
    ).at("resid_pre", position=position),
}


@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize("span", SPANS)
def test_cached_generation_is_uncached(kind, span):
    model, steps = cases.model("gpt2"), 3
    edits = EDITS[kind](SPANS[span])
    found = mijax.generate(model, PROMPTS, steps=steps, edits=edits)
    longest = CLEAN.shape[1] + steps
    tokens = np.zeros((3, longest), np.int32)
    tokens[:, : CLEAN.shape[1]] = CLEAN
    lengths = np.asarray(LENGTHS).copy()
    for _ in range(steps):
        logits = np.asarray(mijax.run(model, tokens, edits))
        last = logits[np.arange(3), lengths - 1]
        top = np.sort(last)[:, -2:]
        assert (top[:, 1] - top[:, 0] > 1e-4).all()
        tokens[np.arange(3), lengths] = last.argmax(-1)
        lengths += 1
    expected = [tokens[i, n : n + steps].tolist() for i, n in enumerate(LENGTHS)]
    assert found.tolist() == expected


def test_spans_of_generation_differ():
    model = cases.model("gpt2")

    def generated(span):
        strong = MADE.add(8.0, position=SPANS[span])
        return mijax.generate(model, PROMPTS, steps=4, edits=strong)

    plain, after = mijax.generate(model, PROMPTS, steps=4), generated("generated")
    # The first new token is read before any generated one is steered.
    assert (plain[:, 0] == after[:, 0]).all()
    assert (plain != after).any()
    assert (generated("prompt")[:, 0] == generated("all")[:, 0]).all()


def test_sweep_over_layer_and_strength_equals_runs():
    model = cases.model("gpt2")
    every = Directions(jax.random.normal(jax.random.key(1), (3, 32)), layers=[0, 1, 2])
    swept = mijax.sweep(
        model,
        PROMPTS,
        every.steer(scale=steering.TokenNorm()).at("resid_post"),
        over={"layer": range(3), "coefficient": [-1.0, 0.0, 2.0]},
        metric=cases.METRIC,
    )
    for layer in range(3):
        for i, strength in enumerate((-1.0, 0.0, 2.0)):
            one = every.at_layers([layer]).add(strength, scale=steering.TokenNorm())
            logits = mijax.run(model, PROMPTS, one)
            np.testing.assert_allclose(
                swept.values[:, layer, i], cases.METRIC(logits), rtol=1e-4, atol=1e-4
            )
    np.testing.assert_array_equal(
        swept.values[:, :, 1], np.repeat(swept.base[:, None], 3, 1)
    )


def test_from_a_span_on():
    spans = {"answer": [(2, 3), (1, 2), (4, 5)]}
    ids = [[1, 2, 3], [4, 5, 6, 7], [1, 3, 5, 7, 9]]
    prompts = Prompts.from_ids(ids, spans=spans)
    span = steering.from_span(prompts, "answer")
    assert (span.start.tolist(), span.stop) == ([2, 1, 4], None)
    model = cases.model("gpt2")
    edited = mijax.run(model, prompts, MADE.add(2.0, position=span))
    changed = np.asarray(edited != mijax.run(model, prompts)).any(-1)
    inside = np.arange(5) >= np.array([[2], [1], [4]])
    np.testing.assert_array_equal(
        changed & np.asarray(prompts.mask), inside & prompts.mask
    )


def test_activation_addition_is_the_difference_at_the_front():
    model = cases.model("gpt2")
    one, other = [1, 5, 6], [1, 7]
    edits = steering.activation_addition(
        model, jnp.array(one), jnp.array(other), layer=1, pad=2, coefficient=3.0
    )
    acts = [
        np.asarray(
            mijax.capture(model, jnp.array(ids), mijax.Site("resid_pre", layer=1))
        )
        for ids in (one, [1, 7, 2])
    ]
    site = mijax.Site("resid_pre", layer=1)
    plain = np.asarray(mijax.capture(model, CLEAN, site))
    found = np.asarray(mijax.capture(model, CLEAN, site, edits))
    np.testing.assert_allclose(
        found[:, :3], plain[:, :3] + 3 * (acts[0] - acts[1]), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(found[:, 3:], plain[:, 3:])
    none = steering.activation_addition(
        model, jnp.array(one), jnp.array(other), layer=1, pad=2, coefficient=0.0
    )
    np.testing.assert_array_equal(
        mijax.run(model, CLEAN, none), mijax.run(model, CLEAN)
    )


def test_a_model_keeps_its_steering():
    model = cases.model("llama")
    edits = MADE.add(1.5, scale=steering.TokenNorm(), limit=steering.SameNorm())
    kept = mijax.run(mijax.edited(model, edits), CLEAN)
    np.testing.assert_allclose(kept, mijax.run(model, CLEAN, edits), rtol=1e-5)


def test_the_gradient_of_a_vector_is_that_of_finite_differences():
    model = cases.model("llama")

    def metric(vectors):
        edits = Directions(vectors, layers=[0, 2]).add(1.0)
        return cases.METRIC(mijax.run(model, CLEAN, edits)).sum()

    step = 1e-2 * jax.random.normal(jax.random.key(2), VECTORS.shape)
    slope = (jax.grad(metric)(VECTORS) * step).sum()
    difference = (metric(VECTORS + step) - metric(VECTORS - step)) / 2
    np.testing.assert_allclose(slope, difference, rtol=1e-2)


def test_any_function_with_layers_is_steered():
    weights = jax.random.normal(jax.random.key(0), (3, 8, 8)) / 3
    x = jax.random.normal(jax.random.key(1), (2, 5, 8))

    def blocks(x):
        def one(x, w):
            return mijax.site("resid_post", x + jnp.tanh(x @ w), "position embed"), None

        return jax.lax.scan(one, x, weights)[0]

    model = mijax.model(blocks, x[0])
    made = Directions(jnp.ones((1, 8)), layers=[1])
    found = mijax.run(model, x, made.add(mijax.PerPrompt([0.0, 2.0])))
    # Another program, so that rounding may differ.
    plain = mijax.run(model, x)
    np.testing.assert_allclose(found[0], plain[0], rtol=1e-5, atol=1e-6)
    expected = x[1]
    for layer in range(3):
        expected = expected + jnp.tanh(expected @ weights[layer]) + 2 * (layer == 1)
    np.testing.assert_allclose(found[1], expected, rtol=1e-5, atol=1e-6)
    for edit in (Directions(jnp.ones((1, 4)), layers=[1]).steer(), narrow()):
        with pytest.raises(mijax.MijaxError, match="site width 8"):
            mijax.run(model, x, edit.at("resid_post"))


def narrow():
    return steering.Ablation(jnp.ones(4))


def test_a_clamped_latent_keeps_the_error():
    model = cases.model("gpt2")
    spec = dictionaries.SAE(32)
    sae = dictionaries.untrained(
        dictionaries.TopK(4), spec, latents=64, key=jax.random.key(1)
    )
    edit = dictionaries.Splice(sae, dictionaries.hold(9, 5.0))
    clamp = edit.at("resid_post", layer=1)
    site = mijax.Site("resid_post", layer=1)
    x, found = (mijax.capture(model, CLEAN, site, e) for e in (None, clamp))
    latent = jax.vmap(jax.vmap(sae.encode))(x)[..., 9]
    zeros = jnp.zeros(64)
    row = sae.decode(zeros.at[9].set(1.0)) - sae.decode(zeros)
    expected = x + (5.0 - latent)[..., None] * row
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda: Directions(jnp.ones((1, 16)), layers=[0]).add(), "site width 32"),
        (lambda: Directions(jnp.ones((1, 32)), layers=[3]).add(), "layers 0 to 2"),
        (lambda: MADE.add(mijax.PerPrompt([1.0, 2.0])), "strength of shape"),
        (lambda: Steer(VECTORS, [0, -1]).at("resid_post"), "layer -1, and the model"),
        (lambda: Steer(VECTORS[:1], [0, 1]).at("resid_post"), "1 steering vectors"),
        (lambda: Steer(VECTORS, [1, 1]).at("resid_post"), "2 different layers"),
        (lambda: MADE.steer().at("embed"), "have a layer"),
        (lambda: MADE.steer().at("z"), "without a head axis"),
        (lambda: MADE.add(scale=steering.LayerNumber([1.0])), "each of 3 layers"),
        (lambda: MADE.add(jnp.ones(3)), "strength is a single number"),
        (lambda: MADE.add(position=PROMPTS.span("end")), "no place 'end'"),
        (lambda: steering.after_prompt(PROMPTS, last=6), "0 to 5, got 6"),
        (
            lambda: steering.FrontAddition(jnp.ones((8, 32))).at("resid_pre", layer=0),
            "8 tokens",
        ),
    ],
)
def test_bad_input(edit, message):
    with pytest.raises(mijax.MijaxError, match=message):
        mijax.run(cases.model("gpt2"), CLEAN, edit())
