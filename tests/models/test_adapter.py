"""LoRA adapters against peft, and what is refused."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mijax import models
from mijax._errors import LoadError

GOLDEN = Path(__file__).parents[1] / "golden"
LAYER = "base_model.model.model.layers.0.self_attn."


def adapter(tmp_path, name, change):
    """Copy an adapter with a change of its config and tensors."""
    folder = tmp_path / "adapter"
    shutil.copytree(GOLDEN / "adapters" / name, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    change(config, tensors)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_merged_adapter_computes_what_peft_does(name):
    with np.load(GOLDEN / "adapters" / f"{name}.npz") as file:
        tokens, expected = jnp.asarray(file["tokens"], jnp.int32), file["logits"]
    base, folder = GOLDEN / "hf" / name, GOLDEN / "adapters" / name
    plain, found = models.load(base), models.load(base, adapter=folder)
    run = jax.jit(jax.vmap(lambda ids: found.model(ids)[0]))
    np.testing.assert_allclose(run(tokens), expected, atol=1e-4, rtol=1e-5)
    assert found.digest != plain.digest
    # Weights that the adapter does not name are those of the model.
    np.testing.assert_array_equal(
        found.model.embedding.weight, plain.model.embedding.weight
    )


def test_parts_are_read_with_the_ranks_and_scales_of_the_patterns():
    found = models.read_adapter(GOLDEN / "adapters" / "llama")
    assert len(found.parts) == 9
    expected = {
        "model.layers.0.self_attn.q_proj": (3, 5 / 3**0.5),
        "model.layers.1.self_attn.q_proj": (2, 5 / 2**0.5),
        "model.layers.2.mlp.down_proj": (3, 7 / 3**0.5),
    }
    for name, (rank, scale) in expected.items():
        part = found.parts[name]
        assert (part.a.shape[0], part.b.shape[1]) == (rank, rank)
        assert part.scale == pytest.approx(scale)
        assert np.linalg.matrix_rank(part.matrix()) == rank
    q = models.load(GOLDEN / "hf" / "llama").model.blocks.attention.w_q
    merged = models.load(
        GOLDEN / "hf" / "llama", adapter=GOLDEN / "adapters" / "llama"
    ).model.blocks.attention.w_q
    change = found.parts["model.layers.1.self_attn.q_proj"].matrix()
    np.testing.assert_allclose(
        (merged - q)[1].reshape(q.shape[1], -1), change.T, atol=1e-6
    )


REFUSED = {
    "another method": (lambda c, t: c.update(peft_type="IA3"), "IA3"),
    "an unknown key": (lambda c, t: c.update(use_magic=True), "use_magic"),
    "magnitudes": (lambda c, t: c.update(use_dora=True), "use_dora"),
    "biases": (lambda c, t: c.update(bias="all"), "bias"),
    "whole modules": (lambda c, t: c.update(modules_to_save=["lm_head"]), "lm_head"),
    "a start that changes weights": (
        lambda c, t: c.update(init_lora_weights="pissa"),
        "init_lora_weights",
    ),
    "another rank": (lambda c, t: c.update(r=4), r"expected A of shape \(4, in\)"),
    "a wrong pattern": (
        lambda c, t: c.update(rank_pattern={"(": 2}),
        "regular expression",
    ),
    "no tensors": (lambda c, t: t.clear(), "no tensors"),
    "matrices the other way round": (
        lambda c, t: c.update(fan_in_fan_out=True),
        "Set it to false",
    ),
    "one factor": (lambda c, t: t.pop(f"{LAYER}q_proj.lora_A.weight"), "factors"),
    "an unknown tensor": (
        lambda c, t: t.update({f"{LAYER}q_proj.bias": np.ones(3, np.float32)}),
        "q_proj.bias",
    ),
    "a module that is not there": (
        lambda c, t: t.update(
            {
                f"{LAYER}x_proj.lora_{half}.weight": np.ones(shape, np.float32)
                for half, shape in (("A", (3, 32)), ("B", (32, 3)))
            }
        ),
        "does not have",
    ),
    "a module of another shape": (
        lambda c, t: t.update(
            {f"{LAYER}q_proj.lora_B.weight": np.ones((9, 3), np.float32)}
        ),
        r"has shape \(9, 32\)",
    ),
    "damaged weights": (
        lambda c, t: t[f"{LAYER}q_proj.lora_B.weight"].fill(np.nan),
        "NaN",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_more_than_plain_lora_is_refused(case, tmp_path):
    change, words = REFUSED[case]
    folder = adapter(tmp_path, "llama", change)
    with pytest.raises(LoadError, match=words) as caught:
        models.load(GOLDEN / "hf" / "llama", adapter=folder)
    assert "\n" not in str(caught.value)


def test_files_with_other_names_take_no_adapter(tmp_path):
    one = models.load(GOLDEN / "hf" / "llama")
    models.save(one.model, one.spec, tmp_path / "own")
    for name in (tmp_path / "own", "induction-2l"):
        with pytest.raises(LoadError, match="adapter of a Hugging Face model"):
            models.load(name, adapter=GOLDEN / "adapters" / "llama")
