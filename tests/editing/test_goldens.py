"""ROME, MEMIT and AlphaEdit against their published code on a random GPT-2."""

import json
from pathlib import Path

import numpy as np
import pytest

import mijax
from mijax.editing import (
    MEMIT,
    ROME,
    AlphaEdit,
    Contexts,
    Covariance,
    Requests,
    ValueSearch,
    rewrite,
)
from mijax.io import save_safetensors

FOLDER = Path(__file__).parent.parent / "golden" / "editing"
CASE = json.loads((FOLDER / "case.json").read_text())
with np.load(FOLDER / "editing.npz") as _file:
    GOLDEN = dict(_file)


def draws():
    """Weights by their name in GPT-2's files, as `make_editing.py` draws them."""
    random, sizes = np.random.RandomState(0), CASE["config"]
    embed, inner = sizes["n_embd"], sizes["n_inner"]
    shapes = {
        "wte.weight": (sizes["vocab_size"], embed),
        "wpe.weight": (sizes["n_positions"], embed),
        "ln_f.weight": (embed,),
        "ln_f.bias": (embed,),
    }
    for i in range(sizes["n_layer"]):
        for name, shape in {
            "ln_1.weight": (embed,),
            "ln_1.bias": (embed,),
            "attn.c_attn.weight": (embed, 3 * embed),
            "attn.c_attn.bias": (3 * embed,),
            "attn.c_proj.weight": (embed, embed),
            "attn.c_proj.bias": (embed,),
            "ln_2.weight": (embed,),
            "ln_2.bias": (embed,),
            "mlp.c_fc.weight": (embed, inner),
            "mlp.c_fc.bias": (inner,),
            "mlp.c_proj.weight": (inner, embed),
            "mlp.c_proj.bias": (embed,),
        }.items():
            shapes[f"h.{i}.{name}"] = shape
    found = {}
    for name, shape in shapes.items():
        is_norm = name.endswith(("1.weight", "2.weight", "f.weight"))
        scale = 1.0 if name == "wte.weight" else 0.2
        found[name] = (scale * random.randn(*shape) + is_norm).astype(np.float32)
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    config = {
        **CASE["config"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_safetensors(draws(), folder / "model.safetensors")
    return mijax.models.load(folder).model


@pytest.fixture(scope="module")
def covariance():
    random, inner = np.random.RandomState(1), CASE["config"]["n_inner"]
    layers = CASE["config"]["n_layer"]
    rows = random.randn(layers, 3 * inner, inner) * np.linspace(0.05, 1, inner)
    moments = np.einsum("lnk,lnj->lkj", rows, rows).astype(np.float32) / (3 * inner)
    return Covariance(moments, tuple(range(layers)), 3 * inner, ("",) * layers)


def requests(groups):
    """The facts as token ids, one per word."""

    def ids(text):
        return [CASE["words"].index(word) for word in text.split()]

    prompts, lookup, targets = [], [], []
    for fact in CASE["facts"]:
        rows, at = [], []
        for text in [c for group in groups for c in group]:
            before = text.replace("{}", fact["prompt"]).split("{}")[0]
            whole = text.replace("{}", fact["prompt"]).replace("{}", fact["subject"])
            rows.append(ids(whole))
            at.append(len(ids(before + fact["subject"])) - 1)
        prompts.append([*rows, ids(fact["subject"] + " is a")])
        lookup.append([*at, len(ids(fact["subject"])) - 1])
        targets.append(ids(fact["target"]))
    weights = Contexts(tuple(map(tuple, groups))).weights
    return Requests.from_ids(prompts, lookup, targets, weights=weights)


def settings(name):
    given = CASE[name]
    return ValueSearch(
        learning_rate=given["v_lr"],
        steps=given["v_num_grad_steps"],
        clamp=given["clamp_norm_factor"],
        kl=given["kl_factor"],
        decay=given["v_weight_decay"],
    )


def close(found, expected):
    """At most 1e-4 of the largest number apart."""
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_rome(model, covariance):
    method = ROME(CASE["rome"]["layers"][0], covariance, search=settings("rome"))
    found = rewrite(model, requests([CASE["contexts"]]), method=method)
    for i, change in enumerate(found.edit.changes):
        close(change.delta.left[:, 0], GOLDEN[f"rome.u{i}"])
        close(change.delta.right[0], GOLDEN[f"rome.right{i}"])


def test_memit(model, covariance):
    given = CASE["memit"]
    method = MEMIT(
        given["layers"],
        covariance,
        given["mom2_update_weight"],
        search=settings("memit"),
    )
    found = rewrite(model, requests(CASE["groups"]), method=method)
    for i, change in enumerate(found.edit.changes):
        close(change.delta.dense(), GOLDEN[f"memit.delta{i}"])


def test_alphaedit(model, covariance):
    given = CASE["alphaedit"]
    method = AlphaEdit.of(
        covariance,
        given["layers"],
        below=given["nullspace_threshold"],
        ridge=given["L2"],
        search=settings("alphaedit"),
    )
    facts = requests(CASE["groups"])
    first = rewrite(model, facts[:2], method=method)
    second = rewrite(first.edit.apply(model), facts[2:], method=first.method)
    for turn, found in enumerate((first, second)):
        for i, change in enumerate(found.edit.changes):
            close(change.delta.dense(), GOLDEN[f"alphaedit.delta{turn}{i}"])
