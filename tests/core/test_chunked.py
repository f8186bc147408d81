"""Verbs chunk by chunk: the same arrays as all at once, on the host and on disk."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CLEAN, CORRUPT, LAST, METRIC, model
from compiles import compiles
from toys import SEQ, TOYS

import mijax
from mijax import Noise, Patch, PerPrompt, Set, Site

DECODER = model("gpt2")
FUNCTION = mijax.model(*TOYS["encoder"])
EXAMPLES = np.asarray(SEQ + 0.3 * jax.random.normal(jax.random.key(1), (3, *SEQ.shape)))
ROWS = np.random.default_rng(0).normal(size=(3, 32))
PROMPTS = mijax.data.Prompts.from_ids([[5, 9, 2, 7], [1, 2], [60, 50, 40]])
AT = PerPrompt([3, 0, 4])
PLACES = {
    "decoder": {"own": Site("z", layer=[0, 2], position=LAST), "every": "resid_final"},
    "function": {"own": Site("z", layer=1, position=AT), "every": "mlp_out"},
}
SCORES = {
    "decoder": METRIC,
    "function": mijax.logit_difference(jnp.array([0, 1, 2]), jnp.array([3, 4, 5])),
}


@functools.cache
def edits(kind):
    """A value per prompt, noise per prompt, and a source of all prompts."""
    key = jax.random.key(2)
    if kind == "decoder":
        source = mijax.capture(DECODER, CORRUPT, Site("z"))
        return [
            Set(PerPrompt(ROWS)).at("resid_pre", layer=1, position=LAST),
            Noise(key, 0.5).at("mlp_out", layer=0),
            Patch(source).at("z", layer=1, head=2),
        ]
    source = mijax.capture(FUNCTION, EXAMPLES[::-1], Site("z"))
    return [
        Set(PerPrompt(ROWS[:, :8])).at("resid_pre", layer=1, position=AT),
        Noise(key, 0.5).at("mlp_out", layer=0),
        Patch(source).at("z", layer=1, head=1),
    ]


def call(verb, kind, **chunks):
    lm, given = {"decoder": (DECODER, CLEAN), "function": (FUNCTION, EXAMPLES)}[kind]
    if verb == "run":
        return mijax.run(lm, given, edits(kind), **chunks)
    if verb == "capture":
        return mijax.capture(lm, given, PLACES[kind], edits(kind), **chunks)
    args = (SCORES[kind], PLACES[kind], edits(kind))
    return mijax.gradients(lm, given, *args, **chunks)


def equal(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    for one, other in pairs:
        assert isinstance(one, np.ndarray)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", ["decoder", "function"])
@pytest.mark.parametrize("verb", ["run", "capture", "gradients"])
def test_the_same_as_all_at_once(verb, kind, tmp_path):
    wanted = call(verb, kind)
    with compiles() as programs:
        found = call(verb, kind, batch=2)
    # The second chunk holds one prompt, filled up to two.
    assert programs.count(f"jit(_{verb})") == 1
    with compiles() as programs:
        again = call(verb, kind, batch=2)
        stored = call(verb, kind, batch=2, out=tmp_path / "out")
    assert programs == []
    for one in (found, again, stored):
        equal(one, wanted)
    assert all(isinstance(leaf, np.memmap) for leaf in jax.tree.leaves(stored))
    assert not any(leaf.flags.writeable for leaf in jax.tree.leaves(stored))


def test_padding_stays_that_of_each_prompt():
    wanted = mijax.run(DECODER, PROMPTS)
    assert np.isnan(wanted).any(-1).tolist() == (~PROMPTS.mask).tolist()
    equal(mijax.run(DECODER, PROMPTS, batch=2), wanted)


def test_more_than_there_are_is_all_of_them():
    equal(mijax.run(DECODER, CLEAN, batch=50), mijax.run(DECODER, CLEAN))


@pytest.mark.parametrize("kind", ["decoder", "function"])
def test_goes_on_after_an_interruption(kind, tmp_path):
    def stop(done, total):
        assert (done, total) == (1, 3)
        raise KeyboardInterrupt

    folder, seen = tmp_path / "out", []
    with pytest.raises(KeyboardInterrupt):
        call("capture", kind, batch=1, out=folder, progress=stop)
    assert json.loads((folder / "mijax_chunks.json").read_text())["done"] == 1
    kept = np.load(folder / "own.npy", mmap_mode="r+")
    # What is done is not computed again.
    kept[0] = 5
    kept.flush()

    def note(*report):
        seen.append(report)

    found = call("capture", kind, batch=1, out=folder, progress=note)
    assert seen == [(2, 3), (3, 3)]
    assert (found["own"][0] == 5).all()
    wanted = call("capture", kind, batch=1)
    equal(jax.tree.map(lambda a: a[1:], found), jax.tree.map(lambda a: a[1:], wanted))
    equal(found["every"], wanted["every"])
    np.testing.assert_array_equal(np.load(folder / "every.npy"), wanted["every"])
    call("capture", kind, batch=1, out=folder, progress=note)
    assert len(seen) == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out"]


def test_types_that_numpy_does_not_know(tmp_path):
    narrow = mijax.model(lambda x: (x * x).astype(jnp.bfloat16), jnp.ones(4))
    inputs = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    equal(mijax.run(narrow, inputs, batch=2, out=tmp_path / "a"), narrow(inputs))
    assert np.load(tmp_path / "a" / "values.npy").dtype == np.uint16


def test_other_folders_are_refused(tmp_path):
    def run(tokens, out, **options):
        return mijax.run(DECODER, tokens, **{"batch": 2, "out": out} | options)

    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    run(CLEAN, mine)
    before = (mine / "values.npy").read_bytes()
    for tokens, options in ((CORRUPT, {}), (CLEAN, {"batch": 3})):
        with pytest.raises(OSError, match="another job"):
            run(tokens, mine, **options)
    (mine / "notes.txt").write_text("mine")
    with pytest.raises(OSError, match=r"holds 'notes\.txt', which mijax did not write"):
        run(CLEAN, mine)
    theirs.mkdir()
    (theirs / "values.npy").write_text("precious")
    with pytest.raises(OSError, match="holds what mijax did not write"):
        run(CLEAN, theirs)
    assert (theirs / "values.npy").read_text() == "precious"
    with pytest.raises(OSError, match="is not a folder"):
        run(CLEAN, theirs / "values.npy")
    (mine / "notes.txt").unlink()
    assert (mine / "values.npy").read_bytes() == before
    np.save(mine / "values.npy", np.zeros(3))
    with pytest.raises(OSError, match=r"holds another array in 'values.npy'"):
        run(CLEAN, mine)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch is 0: give a number of prompts, 1 or more"),
        ({"batch": 1.5}, "run: `batch` must be an integer or None"),
        ({"out": "x"}, "give batch="),
    ],
)
def test_what_is_no_size(options, message):
    with pytest.raises(ValueError, match=message):
        mijax.run(DECODER, CLEAN, **options)


def test_a_single_one_is_refused():
    with pytest.raises(ValueError, match="a batch of prompts, got one"):
        mijax.run(DECODER, CLEAN[0], batch=1)
    with pytest.raises(ValueError, match="a batch of examples, got one"):
        mijax.run(FUNCTION, EXAMPLES[0], batch=1)


@pytest.mark.parametrize(
    ("lm", "given"), [(DECODER, CLEAN), (FUNCTION, jnp.asarray(EXAMPLES))]
)
def test_traced_inputs_are_refused(lm, given):
    with pytest.raises(ValueError, match=r"call this outside jax\.jit"):
        jax.jit(lambda x: mijax.run(lm, x, batch=2))(given)
