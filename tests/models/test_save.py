import dataclasses
import json
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mijax import models, nn
from mijax._errors import LoadError
from mijax.io import load_checkpoint, save_checkpoint

HF = Path(__file__).parents[1] / "golden" / "hf"
FRAMES = {
    "gpt2": ("fold_norm", "centre_writing", "centre_unembedding", "fold_value_biases"),
    "llama3_rope": ("fold_norm", "centre_unembedding"),
}


def same_tree(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def process(model, frame):
    for name in frame:
        model = nn.FRAMES[name](model)
    return model


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("processed", [False, True])
def test_round_trip(tmp_path, name, processed):
    loaded = models.load(HF / name)
    model = process(loaded.model, FRAMES[name] if processed else ())
    models.save(model, loaded.spec, tmp_path / "a", tokenizer=loaded.tokenizer)
    again = models.load(tmp_path / "a")
    same_tree(again.model, model)
    assert again.model.frame == model.frame
    assert again.spec == loaded.spec
    assert again.tokenizer.encode("the store") == loaded.tokenizer.encode("the store")
    save_checkpoint(model, tmp_path / "b", metadata=models.describe(model, loaded.spec))
    again = models.load(tmp_path / "b")
    same_tree(again.model, model)
    assert again.digest.startswith("sha256:")


def test_attention_only(tmp_path):
    spec = models.AttentionOnlySpec(layers=2, embed=16, vocab=20, context=8)
    model = models.init(spec, jax.random.key(0))
    models.save(model, spec, tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["model_type"] == "attention_only"
    loaded = models.load(tmp_path / "a", dtype=jnp.bfloat16)
    assert loaded.model.embedding.weight.dtype == jnp.bfloat16
    same_tree(models.load(tmp_path / "a").model, model)


def test_refusals(tmp_path):
    spec = models.AttentionOnlySpec(layers=1, embed=16, vocab=20, context=8)
    model = models.init(spec, jax.random.key(0))
    other = models.AttentionOnlySpec(layers=1, embed=16, vocab=21, context=8)
    with pytest.raises(LoadError, match="embedding"):
        models.save(model, other, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    save_checkpoint(model, tmp_path / "plain")
    with pytest.raises(LoadError, match="describe"):
        models.load(tmp_path / "plain")
    same_tree(load_checkpoint(model, tmp_path / "plain"), model)
    models.save(model, spec, tmp_path / "a")
    path = tmp_path / "a" / "config.json"
    config = json.loads(path.read_text())
    for change, word in (
        ({"mijax": 99}, "99"),
        ({"model_type": "gpt3"}, "gpt3"),
        ({"spec": {"layer": 2}}, "layers"),
        ({"frame": ["fold_norms"]}, "fold_norm"),
        ({"spec": {**config["spec"], "vocab": 21}}, "embedding.weight"),
        ({"frame": ["fold_norm"]}, "missing"),
    ):
        path.write_text(json.dumps(config | change))
        with pytest.raises(LoadError, match=word) as caught:
            models.load(tmp_path / "a")
        assert "\n" not in str(caught.value)
    config.pop("mijax")
    path.write_text(json.dumps(config))
    with pytest.raises(LoadError, match="mijax"):
        models.load(tmp_path / "a")


def test_model_that_was_changed(tmp_path):
    spec = models.AttentionOnlySpec(layers=1, embed=16, vocab=20, context=8)
    model = models.init(spec, jax.random.key(0))
    model = eqx.tree_at(lambda m: m.norm, model, nn.Identity())
    with pytest.raises(LoadError, match=r"norm\.bias"):
        models.save(model, spec, tmp_path / "a")


def test_settings_without_a_shape_are_compared(tmp_path):
    spec = models.GPT2Spec(
        layers=1,
        embed=16,
        heads=2,
        mlp=32,
        vocab=20,
        context=16,
        eps=1e-2,
        activation="relu",
    )
    model = models.init(spec, jax.random.key(0))
    for change in ({"eps": 1e-5}, {"activation": "gelu_new"}):
        with pytest.raises(LoadError, match="differ in a setting"):
            models.save(model, dataclasses.replace(spec, **change), tmp_path / "a")
    models.save(model, spec, tmp_path / "a")
