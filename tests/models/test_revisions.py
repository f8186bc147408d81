"""Training checkpoints as an axis: stacked, mapped, and refused if unequal."""

import dataclasses
import functools
import tempfile
from pathlib import Path

import chex
import equinox as eqx
import huggingface_hub
import jax
import jax.numpy as jnp
import pytest

import mijax
from mijax import models
from mijax._errors import LoadError

SPEC = models.AttentionOnlySpec(layers=2, embed=16, heads=2, vocab=50)
STEPS = ("step0", "step100", "step200")
TOKENS = jnp.array([[5, 6, 7], [8, 9, 10]])
METRIC = mijax.logit_difference(3, 4)


@functools.cache
def checkpoints() -> Path:
    folder = Path(tempfile.mkdtemp())
    for i, name in enumerate(STEPS):
        models.save(models.init(SPEC, jax.random.key(i)), SPEC, folder / name)
    other = dataclasses.replace(SPEC, heads=4)
    models.save(models.init(other, jax.random.key(9)), other, folder / "wide")
    model = models.init(SPEC, jax.random.key(9))
    models.save(mijax.nn.fold_norm(model), SPEC, folder / "folded")
    return folder


def test_the_stack_holds_every_revision():
    many = models.load_many(checkpoints(), STEPS)
    assert many.names == STEPS
    assert many.spec == SPEC
    assert len(set(many.digests)) == 3
    for i, name in enumerate(STEPS):
        one = models.load(checkpoints() / name)
        chex.assert_trees_all_equal(many.at(name), one.model)
        assert many.digests[i] == one.digest
    again = models.load(checkpoints(), revision="step100")
    chex.assert_trees_all_equal(many.at("step100"), again.model)
    low = models.load_many(checkpoints(), STEPS[:2], dtype="bfloat16").model
    assert low.embedding.weight.dtype == jnp.bfloat16
    assert low.embedding.weight.shape == (2, 50, 16)


def test_a_curve_is_one_program_and_the_loop():
    many = models.load_many(checkpoints(), STEPS)
    edit = mijax.Zero().at("z", layer=1, head=0)

    traced = []

    def measure(model):
        traced.append(model)
        return METRIC(mijax.run(model, TOKENS, edit))

    expected = jnp.stack([measure(many.at(name)) for name in STEPS])
    assert jnp.ptp(expected, axis=0).min() > 1e-3
    traced.clear()
    found = many.map(measure)
    assert len(traced) == 1
    chex.assert_trees_all_close(found, expected, atol=1e-5)
    for batch in (1, 2):
        chex.assert_trees_all_close(many.map(measure, batch=batch), expected, atol=1e-5)
    by_vmap = eqx.filter_vmap(measure)(many.model)
    chex.assert_trees_all_close(by_vmap, expected, atol=1e-5)
    gradient = many.map(
        lambda model: mijax.gradients(model, TOKENS, METRIC, mijax.Site("resid_pre"))
    )
    one = mijax.gradients(many.at("step200"), TOKENS, METRIC, mijax.Site("resid_pre"))
    chex.assert_trees_all_close(gradient[2], one, atol=1e-5)


@pytest.mark.parametrize(
    ("revisions", "words"),
    [
        ([], "distinct names"),
        ("step0", "distinct names"),
        (["step0", "step0"], "distinct names"),
        (["step0", "step9"], "no revision 'step9'"),
        (["step0", "wide"], "'wide' has heads=4, 'step0' has 2"),
        (["step0", "folded"], "'folded' differs from 'step0' in"),
    ],
)
def test_what_does_not_stack_is_refused_in_one_line(revisions, words):
    with pytest.raises(LoadError, match=words) as caught:
        models.load_many(checkpoints(), revisions)
    assert "\n" not in str(caught.value)


def test_models_without_revisions_are_refused():
    with pytest.raises(LoadError, match="has no revisions"):
        models.load("induction-2l", revision="step0")
    with pytest.raises(LoadError, match=r"without the revision 'step7'.*'step0'"):
        models.load_many(checkpoints(), ["step0"]).at("step7")


def test_revisions_of_the_hub(monkeypatch):
    asked = []

    def fetch(hub_id, *, allow_patterns, revision):
        asked.append((hub_id, revision))
        return str(checkpoints() / revision)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    many = models.load_many("pythia-70m", STEPS[:2])
    assert asked == [("EleutherAI/pythia-70m", name) for name in STEPS[:2]]
    expected = models.load_many(checkpoints(), STEPS[:2])
    chex.assert_trees_all_equal(many.model, expected.model)
    assert models.load("some-org/some-model", revision="step200").spec == SPEC
    assert asked[-1] == ("some-org/some-model", "step200")

    def missing(hub_id, *, allow_patterns, revision):
        kind = huggingface_hub.errors.RevisionNotFoundError
        raise kind.__new__(kind)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", missing)
    with pytest.raises(LoadError, match="no revision 'step3' on the hub"):
        models.load("some-org/some-model", revision="step3")
