"""`mijax check` against what transformers computed for the goldens."""

import contextlib
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from family_weights import golden, write

import mijax
from mijax.cli import _check, main
from mijax.models.internal import FAMILIES

HF = Path(__file__).parents[1] / "golden" / "hf"


@pytest.fixture
def transformers(monkeypatch):
    """What the library returns for the first prompt of the goldens."""
    golden = np.load(HF / "llama.npz")
    tokens = golden["tokens"][0].tolist()

    def model(given, **_):
        assert given == [tokens]
        return SimpleNamespace(
            hidden_states=[h[:1] for h in golden["hidden_states"]],
            attentions=[a[:1] for a in golden["attentions"]],
            logits=golden["logits"][:1],
        )

    load = SimpleNamespace(from_pretrained=lambda source, **_: model)
    library = SimpleNamespace(AutoModelForCausalLM=load, __version__="5.0")
    torch = SimpleNamespace(
        tensor=lambda ids: ids, float32=None, no_grad=contextlib.nullcontext
    )
    monkeypatch.setitem(sys.modules, "transformers", library)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(_check, "encode", lambda loaded, text: tokens)


def test_the_first_site_that_differs(transformers, tmp_path, capsys):
    assert main(["check", str(HF / "llama")]) == 0
    assert "All 8 activations equal those of transformers" in capsys.readouterr().out
    shutil.copytree(HF / "llama", tmp_path / "other")
    config = tmp_path / "other" / "config.json"
    said = json.loads(config.read_text())
    said["rope_parameters"]["rope_theta"] = 500.0
    config.write_text(json.dumps(said))
    assert main(["check", str(tmp_path / "other")]) == 1
    assert "pattern of layer 0 is the first site that" in capsys.readouterr().out


def test_encoders_are_compared_too(transformers, tmp_path, monkeypatch, capsys):
    arrays = golden("bert_masked")
    hidden = [arrays["embed"][None], *arrays["blocks"][:, None]]
    out = SimpleNamespace(
        hidden_states=hidden, attentions=None, logits=arrays["logits"][None]
    )
    load = SimpleNamespace(from_pretrained=lambda source, **_: lambda ids, **_: out)
    library = SimpleNamespace(AutoModelForMaskedLM=load, __version__="5.0")
    monkeypatch.setitem(sys.modules, "transformers", library)
    monkeypatch.setattr(_check, "encode", lambda *_: arrays["tokens"].tolist())
    assert main(["check", str(write(tmp_path, "bert_masked"))]) == 0
    assert "All 5 activations equal" in capsys.readouterr().out
    assert main(["check", str(write(tmp_path, "bert_features"))]) == 2
    assert "head 'features'" in capsys.readouterr().err


def test_what_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main(["check", str(HF / "llama")]) == 2
    assert "pip install transformers torch" in capsys.readouterr().err
    assert main(["check", str(HF / "llama"), "--tolerance", "0"]) == 2


def test_every_family_that_loads_was_verified(capsys):
    assert main(["models"]) == 0
    shown = capsys.readouterr().out
    file = Path(mijax.models.__file__).parent / "verified.json"
    found = json.loads(file.read_text())
    assert set(found) == {f.name for f in FAMILIES if f.from_config is not None}
    for name, row in found.items():
        assert name in shown
        assert row["difference"] < 1e-4
