"""Training of dictionaries: resumed, in lanes, on meshes."""

import functools

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax import Site, train
from mijax import dictionaries as d
from mijax._errors import ConfigError, LoadError, OutputError, ShapeError, TrainingError
from mijax.data import Activations, Batch, Corpus, Examples, Tokens, statistics
from mijax.dictionaries._dead import resampled
from mijax.dictionaries._wiring import Weights

EMBED, LATENTS = 8, 16
CORPUS = Corpus.from_ids([range(1, 20)])
ARCHITECTURES = {
    "relu": d.ReLU(0.05),
    "tanh": d.ReLU(0.05, penalty="tanh"),
    "sqrt": d.ReLU(0.05, penalty="sqrt"),
    "gated": d.Gated(0.05),
    "jump_relu": d.JumpReLU(0.05, bandwidth=0.1, threshold=0.05),
    "topk": d.TopK(3),
    "batch_topk": d.BatchTopK(3),
    "matryoshka": d.Matryoshka((0.25, 0.75), k=3),
}
WIRINGS = {
    "sae": d.SAE(EMBED),
    "transcoder": d.Transcoder(EMBED, 6),
    "skip": d.Transcoder(EMBED, 6, skip=True),
    "crosscoder": d.Crosscoder(2, EMBED),
    "cross_layer": d.CrossLayer(2, EMBED),
}


@functools.cache
def source(wiring="sae", batch=32):
    given = WIRINGS[wiring]
    random = np.random.default_rng(0)
    hidden = random.exponential(size=(128, 12)) * (random.random((128, 12)) < 0.2)
    x, y = (
        hidden @ random.normal(size=(12, int(np.prod(shape))))
        for shape in (given.reads, given.writes)
    )
    x = jnp.float32(x).reshape(-1, *given.reads)
    if wiring in ("sae", "crosscoder"):
        return Examples(x, batch=batch)
    return Examples(x, jnp.float32(y).reshape(-1, *given.writes), batch=batch)


def training(architecture="topk", wiring="sae", **options):
    tied = wiring in ("sae", "crosscoder")
    options = {"steps": 12, "learning_rate": 1e-2, "dead_after": 64, **options}
    return d.Training(
        *(ARCHITECTURES[architecture], WIRINGS[wiring]),
        latents=LATENTS,
        tied=tied,
        **options,
    )


def numbers(dictionary):
    return dictionary.weights, dictionary.extra, dictionary.running


PAIRS = [(name, "sae") for name in ARCHITECTURES]
PAIRS += [("topk", name) for name in WIRINGS if name != "sae"]
PAIRS += [("gated", "skip"), ("batch_topk", "crosscoder"), ("relu", "cross_layer")]


@pytest.mark.parametrize(("architecture", "wiring"), PAIRS)
def test_every_architecture_and_every_wiring_learns(architecture, wiring):
    given, told = source(wiring), train.Memory()
    found = d.train(
        training(architecture, wiring, steps=40), given, sinks=[told], report=1
    )
    errors = [row["error"] for row in told.rows]
    assert errors[-1] < 0.9 * errors[0]
    x = given.x[:5]
    assert found(x).shape == (5, *WIRINGS[wiring].writes)
    assert found.encode(x).shape == (5, LATENTS)
    # One example at a time is the same as all at once.
    chex.assert_trees_all_close(found(x[2]), found(x)[2], atol=1e-5)


MESHED = [(name, "sae") for name in ARCHITECTURES if name not in ("tanh", "sqrt")]


@pytest.mark.parametrize(
    ("architecture", "wiring"), [*MESHED, ("topk", "cross_layer"), ("topk", "skip")]
)
def test_meshes_are_one_device(architecture, wiring):
    alone, shared = train.Memory(), train.Memory()
    given = training(architecture, wiring, steps=6, clip=0.1)
    one = d.train(given, source(wiring), sinks=[alone], report=1)
    other = d.train(
        *(given, source(wiring)),
        mesh=train.mesh(data=2, model=4),
        sinks=[shared],
        report=1,
    )
    for ours, theirs in zip(alone.rows, shared.rows, strict=True):
        chex.assert_trees_all_close(ours, theirs, rtol=1e-4, atol=1e-4)
    chex.assert_trees_all_close(numbers(one), numbers(other), atol=1e-5)


def test_a_device_holds_its_share_of_the_latents():
    state = train.fit(training(), source(), steps=2, mesh=train.mesh(data=1, model=4))
    for leaf in jax.tree.leaves((state.params.weights.decoder, state.optimiser)):
        if leaf.ndim and leaf.shape[0] == LATENTS:
            assert leaf.addressable_shards[0].data.shape[0] == LATENTS // 4


@pytest.mark.parametrize("architecture", ["topk", "batch_topk", "gated"])
def test_interrupted_and_resumed_is_uninterrupted(architecture, tmp_path):
    class Stop(train.Memory):
        def write(self, step, numbers):
            if step == 7:
                raise KeyboardInterrupt

    given = training(architecture, resample=5)
    whole = d.train(given, source())
    log = train.Jsonl(tmp_path / "log.jsonl")
    options = {"checkpoint": tmp_path / "run", "every": 3, "report": 1}
    with pytest.raises(KeyboardInterrupt):
        d.train(given, source(), sinks=[log, Stop()], **options)
    resumed = d.train(
        given, source(), sinks=[train.Jsonl(tmp_path / "log.jsonl")], **options
    )
    chex.assert_trees_all_equal(numbers(resumed), numbers(whole))
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == [
        f'{{"step": {i}' for i in range(1, 13)
    ]
    with pytest.raises(OutputError, match="another run"):
        d.train(training(architecture, seed=1), source(), **options)


@pytest.mark.parametrize("architecture", ["topk", "gated", "jump_relu", "batch_topk"])
def test_a_finished_run_takes_more_steps(architecture, tmp_path):
    options = {"checkpoint": tmp_path / "run", "every": 4}
    d.train(training(architecture, steps=8), source(), **options)
    more = d.train(training(architecture, steps=12), source(), **options)
    whole = d.train(training(architecture, steps=12), source())
    chex.assert_trees_all_equal(numbers(more), numbers(whole))
    last = d.load(tmp_path / "run")
    assert last.format == "checkpoint"
    chex.assert_trees_all_equal(numbers(last.dictionary), numbers(whole))
    of_first = d.from_checkpoint(tmp_path / "run", step=8)
    assert bool(eqx.tree_equal(d.load(tmp_path / "run" / "8").dictionary, of_first))
    with pytest.raises(OutputError, match="another run"):
        d.train(training(architecture, steps=12, seed=1), source(), **options)
    with pytest.raises(LoadError, match="no checkpoint of update 5, only of updates"):
        d.from_checkpoint(tmp_path / "run", step=5)


def test_dictionaries_trained_together_are_read_together(tmp_path):
    given = [training(seed=seed) for seed in (0, 1)]
    found = d.train(given, source(), checkpoint=tmp_path)
    for one, other in zip(found, d.from_checkpoint(tmp_path), strict=True):
        chex.assert_trees_all_equal(numbers(one), numbers(other))
    with pytest.raises(LoadError, match="holds 2 dictionaries"):
        d.load(tmp_path)


@pytest.mark.parametrize("architecture", ["topk", "gated", "jump_relu", "batch_topk"])
def test_training_starts_from_a_dictionary(architecture):
    x, given = source().x, training(architecture, learning_rate=0.0, scale=2.0)
    first = d.train(training(architecture, scale=0.5), source())
    before = jax.tree.map(np.array, numbers(first))
    found = d.train(given, source(), start=first)
    if architecture != "batch_topk":  # its threshold moves
        chex.assert_trees_all_close(found(x), first(x), atol=1e-5)
    chex.assert_trees_all_close(found.weights.encoder, first.weights.encoder)
    chex.assert_trees_all_equal(numbers(first), before)
    both = d.train([given, given], source(), start=[first, first])
    chex.assert_trees_all_equal(numbers(both[1]), numbers(found))


@pytest.mark.parametrize(
    ("steps", "decay", "replaced"), [(10, 0, True), (9, 0, False), (12, 8, False)]
)
def test_replaced_latents_have_time_to_learn(steps, decay, replaced):
    """Replacement is due at update 5: not if fewer than 5, or `decay`, come after."""
    options = {"steps": steps, "decay": decay, "dead_after": 0}
    one = d.train(training(**options, resample=5), source())
    other = d.train(training(**options), source())
    same = bool((one.weights.decoder == other.weights.decoder).all())
    assert same != replaced


def test_a_run_goes_on_on_another_mesh(tmp_path):
    """Activations lie on the mesh, and the same rows come out of them anywhere."""
    model = mijax.testing.tiny_attention_only(jax.random.key(0))
    corpus = Corpus.from_ids([range(1, 60), range(3, 40)], separator=0)
    tokens = Tokens(corpus, seq=8, batch=4, bos=1)

    def run(steps, mesh, folder):
        site = Site("resid_post", layer=1)
        rows = Activations(model, tokens, site, batch=8, buffer=32, mesh=mesh)
        given = d.Training(d.TopK(3), d.SAE(32), latents=32, steps=12)
        return train.fit(
            given, rows, steps=steps, mesh=mesh, checkpoint=tmp_path / folder
        )

    run(6, train.mesh(data=2, model=1), "run")
    other = run(12, train.mesh(data=1, model=4), "run")
    alone = run(12, None, "alone")
    assert int(other.step) == 12
    chex.assert_trees_all_close(other.params, alone.params, atol=1e-5)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES])
def test_products_in_bfloat16_have_gradients_in_float32(architecture):
    _, batch = source().batch(source().start())
    step = train.Step(jnp.int32(0), jax.random.key(0))

    def slope(dtype):
        given = training(architecture, dtype=dtype)
        params, memory = given.start(given.key())
        value = eqx.filter_value_and_grad(given.loss, has_aux=True)
        (loss, _), found = eqx.filter_jit(value)(params, memory, batch, step)
        return loss, found, params

    (loss, exact, params), (near, rough, _) = slope("float32"), slope("bfloat16")
    chex.assert_trees_all_equal_shapes_and_dtypes(rough, params)
    # A number of eight bits is off by 2^-9 at most, a product by twice that. A latent
    # near 0 may fall on the other side, where its encoder has no slope.
    assert 0 < abs(near - loss) < 2**-8 * loss
    ours, theirs = rough.weights.decoder, exact.weights.decoder
    assert jnp.linalg.norm(ours - theirs) < 2**-6 * jnp.linalg.norm(theirs)


def test_lanes_are_runs_of_their_own():
    given = [
        training(seed=seed, learning_rate=rate)
        for seed, rate in ((0, 1e-2), (1, 1e-2), (1, 1e-3))
    ]
    together = d.train(given, source())
    for one, lane in zip(given, together, strict=True):
        alone = d.train(one, source())
        chex.assert_trees_all_close(numbers(alone), numbers(lane), atol=1e-5)


def test_k_may_differ_between_lanes():
    sized = [
        d.Training(d.TopK(k, most=4), d.SAE(EMBED), latents=LATENTS, steps=3)
        for k in (2, 4)
    ]
    for k, found in zip((2, 4), d.train(sized, source()), strict=True):
        assert int((found.encode(source().x) > 0).sum(1).max()) == k


def test_another_number_is_the_same_program(no_programs):
    from mijax.train import _update  # noqa: PLC0415

    d.train(training(learning_rate=1e-2), source())
    before = _update._update._cached._cache_size()
    d.train(training(learning_rate=2e-2, seed=3), source())
    assert _update._update._cached._cache_size() == before
    d.train(training(unit_norm=True), source())
    assert _update._update._cached._cache_size() == before + 1


def test_the_decoder_keeps_its_length():
    found = d.train(training(unit_norm=True), source())
    norms = jnp.linalg.norm(found.weights.decoder, axis=1)
    chex.assert_trees_all_close(norms, jnp.ones(LATENTS), atol=1e-5)


@pytest.mark.parametrize("wiring", ["sae", "crosscoder"])
def test_the_centre_is_in_the_units_of_the_activations(wiring):
    """What statistics give is what training takes, whatever the scale."""
    x = source(wiring).x + 5
    known = statistics(Examples(x, batch=32), len(x))
    scale = float(known.scale.mean())
    given = training(wiring=wiring, centre=known.mean, scale=scale)
    weights = given.start(given.key())[0].weights
    np.testing.assert_array_equal(weights.centre, (known.mean * scale).reshape(-1))
    old = training(wiring=wiring, centre=known.mean * scale)
    chex.assert_trees_all_equal(weights, old.start(old.key())[0].weights)
    # The mean is what is written where no latent is active.
    new = given.dictionary(*given.start(given.key()))
    none = new.decode(jnp.zeros(LATENTS))
    chex.assert_trees_all_close(none, known.mean, rtol=1e-5)
    drawn = d.untrained(
        *(given.architecture, given.wiring),
        latents=LATENTS,
        key=given.key(),
        centre=known.mean,
        scale=scale,
    )
    chex.assert_trees_all_equal(drawn.weights, weights)


def test_a_loss_that_is_no_number_stops_and_says_where(tmp_path):
    x = source().x.at[70].set(jnp.nan)
    with pytest.raises(TrainingError, match=r"step \d.*not finite.*checkpoint is step"):
        d.train(
            training(steps=40),
            Examples(x, batch=16, seed=3),
            checkpoint=tmp_path / "run",
            every=1,
        )


def test_latents_are_dead_after_a_tenth_of_the_run():
    for given, expected in (
        (training(steps=50, dead_after=None), 5 * 64),
        (training(steps=5, dead_after=None), 64),
        (training(steps=10**9, dead_after=None), 1_000_000),
        (training(dead_after=7), 7),
    ):
        assert int(given.patience(jnp.int32(64))) == expected


BAD = {
    "most": (lambda: d.TopK(0), ConfigError, "at least 1"),
    "k": (lambda: training_of(d.TopK(17)), ConfigError, "smaller k"),
    "batch_k": (lambda: training_of(d.BatchTopK(17)), ConfigError, "smaller k"),
    "penalty": (lambda: d.ReLU(penalty="l2"), ConfigError, "no penalty"),
    "groups": (lambda: d.Matryoshka((0.5, 0.6)), ConfigError, "add up to 1"),
    "few": (
        lambda: training_of(d.Matryoshka((0.01, 0.99), k=3)),
        ConfigError,
        "too few",
    ),
    "layers": (lambda: training_of(d.ReLU(), d.CrossLayer(3, 4)), ShapeError, "evenly"),
    "schedule": (lambda: training(warmup=20), ConfigError, "warm up"),
    "mesh": (
        lambda: d.train(training(), source(), mesh=train.mesh(data=1, model=3)),
        ConfigError,
        "do not divide 16 latents",
    ),
    "devices": (lambda: train.mesh(data=100), ConfigError, "devices"),
    "lanes": (
        lambda: d.train([training(), training("relu")], source()),
        ConfigError,
        "more than numbers",
    ),
    "examples": (lambda: Examples(jnp.ones((3, 2)), batch=4), ConfigError, "drawn"),
    "array": (
        lambda: d.train(training(), source().x),
        ConfigError,
        r"source of batches, got ArrayImpl: .*Examples\(x, batch=",
    ),
    "tokens": (
        lambda: d.train(training(), Tokens(CORPUS, seq=4, batch=2)),
        ShapeError,
        r"gives TokenBatch: .*Activations\(",
    ),
    "reads": (
        lambda: d.train(training_of(d.TopK(3), d.SAE(5)), source()),
        ShapeError,
        r"SAE\(embed=5\) reads activations \[5\], the source gives \[8\]",
    ),
    "reads_in_lanes": (
        lambda: d.train([training_of(d.TopK(3), d.SAE(5))] * 2, source()),
        ShapeError,
        r"reads activations \[5\], the source gives \[8\]",
    ),
    "writes": (
        lambda: d.train(training(wiring="transcoder"), source()),
        ShapeError,
        r"writes activations \[6\], the source gives \[8\]",
    ),
    "rank": (
        lambda: d.train(training(), source("crosscoder")),
        ShapeError,
        r"reads activations \[8\], the source gives \[2, 8\]",
    ),
    "rate": (
        lambda: training(learning_rate="1e-3"),
        ConfigError,
        "learning_rate takes one number, such as 0.0003, got '1e-3'",
    ),
    "scale": (
        lambda: training(scale=jnp.ones(2)),
        ConfigError,
        r"scale takes one number.*got shape \(2,\)",
    ),
    "scales": (
        lambda: training(wiring="crosscoder", scale=jnp.ones(3)),
        ConfigError,
        r"one number, or 2, one per site.*got shape \(3,\)",
    ),
    "start": (
        lambda: d.train(training(), source(), start=started(d.TopK(3), d.SAE(5))),
        ConfigError,
        r"cannot start from TopK, SAE\(embed=5\)",
    ),
    "starts": (
        lambda: d.train(
            [training()] * 2, source(), start=[started(d.TopK(3), d.SAE(8))]
        ),
        ConfigError,
        "2 trainings start from one dictionary, or from one each, got 1",
    ),
    "target": (lambda: d.JumpReLU(target=0), ConfigError, "positive target"),
    "targets": (
        lambda: training_of(d.JumpReLU(target=17)),
        ConfigError,
        "smaller target",
    ),
    "input": (
        lambda: d.train(training(), source())(jnp.ones((2, 5))),
        ShapeError,
        "reads activations",
    ),
}


def started(architecture, wiring):
    return d.untrained(architecture, wiring, latents=16, key=jax.random.key(0))


def training_of(architecture, wiring=WIRINGS["sae"]):
    return d.Training(architecture, wiring, latents=LATENTS, steps=2)


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(case, unchecked):
    make, error, said = BAD[case]
    with pytest.raises(error, match=said):
        make()


def test_a_crosscoder_of_two_models_from_tokens_to_file(tmp_path):
    models = [mijax.testing.tiny_gpt2(jax.random.key(seed)) for seed in (0, 1)]
    random = np.random.default_rng(0)
    corpus = Corpus.from_ids(random.integers(1, 64, (60, 12)))
    site = Site("resid_post", layer=1)
    given = Activations(models, Tokens(corpus, seq=12, batch=4), site, batch=32)
    told = train.Memory()
    found = d.train(
        d.Training(
            d.TopK(8),
            d.Crosscoder(2, 32),
            latents=64,
            steps=60,
            seed=3,
            learning_rate=1e-2,
        ),
        given,
        sinks=[told],
        report=1,
    )
    assert told.rows[-1]["fvu"] < 0.5 * told.rows[0]["fvu"]
    # Latents are shared: both models' parts add up before the largest are kept.
    x = jnp.stack([mijax.capture(m, jnp.arange(1, 9), site) for m in models], axis=1)
    encoder = found.weights.encoder.reshape(64, 2, 32)
    decoder = found.weights.decoder.reshape(64, 2, 32)
    hidden = jnp.einsum("bme,lme->bl", x, encoder) + found.weights.bias
    least = jnp.sort(hidden, axis=1)[:, -8][:, None]
    hidden = jnp.where(hidden >= least, jax.nn.relu(hidden), 0)
    np.testing.assert_allclose(found.encode(x), hidden, atol=1e-4)
    out = jnp.einsum("bl,lme->bme", hidden, decoder)
    expected = out + found.weights.centre.reshape(2, 32)
    np.testing.assert_allclose(found(x), expected, atol=1e-4)
    d.save(found, tmp_path / "both")
    again = d.load(tmp_path / "both").dictionary
    np.testing.assert_array_equal(again(x), found(x))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_activations_are_measured_in_float32(dtype):
    random = np.random.default_rng(0)
    x = jnp.float32(random.normal(size=(128, 64)) * 40 + 30).astype(dtype)
    rows = []
    for given in (x, x.astype(jnp.float32)):
        told = train.Memory()
        one = d.Training(d.TopK(4), d.SAE(64), latents=64, steps=1)
        d.train(one, Examples(given, batch=128), sinks=[told], report=1)
        rows.append(told.rows[0])
    assert rows[1]["fvu"] > 0.1
    chex.assert_trees_all_close(*rows, rtol=1e-5)


def replaced(given, dead, batch, weights=None, seed=0):
    """Parameters after replacement, of those drawn or of some weights."""
    params, memory = given.start(given.key())
    params = params if weights is None else params._replace(weights=weights)
    state = given.optimiser().init(params)
    key = jax.random.key(seed)
    return resampled(given, params, state, memory, dead, batch, key)[0]


def test_what_the_dictionary_itself_restores_badly_is_drawn():
    """TopK(1) restores the first half; two latents together would not."""
    eye = np.eye(8, dtype=np.float32)
    mixed = (eye[:4] + 0.9 * eye[[1, 2, 3, 0]]) / np.sqrt(1.81)
    rows = jnp.float32(np.concatenate([eye[:4], mixed]))
    weights = Weights(rows, jnp.zeros(8), rows, jnp.zeros(8))
    x = jnp.float32(np.concatenate([3 * eye[:4], 2 * eye[4:]]))
    given = d.Training(d.TopK(1), d.SAE(8), latents=8, steps=9, resample=1)
    dead = jnp.arange(8) > 0
    for seed in range(5):
        new = replaced(given, dead, Batch(x), weights, seed).weights.decoder[1:]
        assert set(np.argmax(new @ x.T, axis=1).tolist()) <= {4, 5, 6, 7}


def test_a_linear_path_restores_too():
    eye = jnp.eye(8)
    none = jnp.zeros((8, 8))
    weights = Weights(none, none[0], none, none[0], eye.at[:, 4:].set(0))
    given = d.Training(
        d.ReLU(), d.Transcoder(8, skip=True), latents=8, steps=9, resample=1
    )
    new = replaced(given, jnp.ones(8, bool), Batch(eye, eye), weights).weights.decoder
    assert set(np.argmax(new, axis=1).tolist()) <= {4, 5, 6, 7}


@pytest.mark.parametrize("wiring", WIRINGS)
def test_new_encoders_read_the_input_of_their_example(wiring):
    """One example only, so every dead latent is given it."""
    given = training("relu", wiring, resample=5)
    _, batch = source(wiring).batch(source(wiring).start())
    one = Batch(batch.x[:1], batch.y[:1])
    new = replaced(given, jnp.arange(LATENTS) > 1, one).weights
    x = jnp.broadcast_to(one.x, (LATENTS, *one.x.shape[1:]))
    if wiring == "cross_layer":
        x = x[jnp.arange(LATENTS), jnp.arange(LATENTS) % 2]
    x = x.reshape(LATENTS, -1)
    expected = 0.2 * x / jnp.linalg.norm(x, axis=1, keepdims=True)
    chex.assert_trees_all_close(new.encoder[2:], expected[2:], atol=1e-6)
    y = one.y.reshape(1, -1)
    chex.assert_trees_all_close(
        new.decoder[2:], jnp.tile(y / jnp.linalg.norm(y), (LATENTS - 2, 1)), atol=1e-6
    )


def test_where_all_are_dead_encoders_have_a_length():
    _, batch = source().batch(source().start())
    new = replaced(training("relu", resample=5), jnp.ones(LATENTS, bool), batch)
    lengths = jnp.linalg.norm(new.weights.encoder, axis=1)
    chex.assert_trees_all_close(lengths, jnp.full(LATENTS, 0.2), atol=1e-6)
