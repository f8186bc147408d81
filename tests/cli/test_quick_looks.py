import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mijax import core, testing
from mijax._errors import TokenError
from mijax.cli import _attention, _logits, _patch, main

WORDS = ["when", " Mary", " and", " John", " left", ",", " gave", " to", " <b>"]


class Tokenizer:
    """Words of a fixed list as tokens 1, 2, …."""

    def encode(self, text, add_special=False):
        tokens = []
        while text:
            word = next(w for w in WORDS if text.startswith(w))
            tokens.append(WORDS.index(word) + 1)
            text = text.removeprefix(word)
        return tokens

    def pieces(self, tokens):
        return [WORDS[t - 1] if 1 <= t <= len(WORDS) else f"<{t}>" for t in tokens]

    def token(self, text):
        tokens = self.encode(text)
        if len(tokens) != 1:
            raise TokenError(f"{text!r} is {len(tokens)} tokens; expected one.")
        return tokens[0]


@pytest.fixture
def loaded(monkeypatch, tmp_path):
    value = SimpleNamespace(
        model=testing.tiny_gpt2(jax.random.key(0)), tokenizer=Tokenizer()
    )
    for module in (_attention, _logits, _patch):
        monkeypatch.setattr(module, "load_model", lambda name: value)
    monkeypatch.chdir(tmp_path)
    return value


CLEAN = "when Mary and John left, John gave to"
PATCH = [
    "patch",
    "tiny",
    "--clean",
    CLEAN,
    "--corrupt",
    CLEAN.replace(", John", ", Mary"),
]
PATCH += ["--answer", " Mary", "--wrong", " John"]


def naive(loaded, site, layer, place):
    clean = jnp.array(loaded.tokenizer.encode(CLEAN))
    corrupt = clean.at[6].set(2)
    acts = core.capture(loaded.model, clean, core.Site(site))
    edit = core.Patch(acts).at(site, layer=layer, **place)
    logits = core.run(loaded.model, corrupt, edit)[-1]
    return float(logits[2] - logits[4])


def test_patch_json(capsys, loaded):
    assert main([*PATCH, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["values", "axes", "clean", "corrupt"]
    assert found["axes"] == ["layer", "position"]
    values = np.array(found["values"])
    assert values.shape == (3, 9)
    for layer, position in ((0, 6), (1, 6), (2, 8)):
        expected = naive(loaded, "resid_pre", layer, {"position": position})
        np.testing.assert_allclose(values[layer, position], expected, atol=1e-4)
    np.testing.assert_allclose(values[:, 0], found["corrupt"], atol=1e-4)
    assert found["clean"] != found["corrupt"]


def test_patch_over_heads_in_the_order_given(capsys, loaded):
    assert main([*PATCH, "--json", "--site", "z", "--over", "head,layer"]) == 0
    values = np.array(json.loads(capsys.readouterr().out)["values"])
    assert values.shape == (4, 3)
    np.testing.assert_allclose(
        values[2, 1], naive(loaded, "z", 1, {"head": 2}), atol=1e-4
    )


def test_patch_grid_and_picture(capsys, loaded, tmp_path):
    assert main([*PATCH, "--png", "grid.png"]) == 0
    text = capsys.readouterr().out
    assert "·Mary" in text
    assert "Fraction recovered, layer by position" in text
    # The whole clean residual stream at the one token that differs restores all.
    assert "1.00" in text
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
    assert main([*PATCH, "--over", "layer"]) == 0


def test_patch_without_a_difference_shows_the_logits(capsys, loaded):
    assert main([*PATCH, "--corrupt", CLEAN, "--over", "layer"]) == 0
    assert "Logit difference (nats), layer" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--corrupt", "when Mary"], "--clean has 9 tokens and --corrupt 2"),
        (["--answer", " Mary John"], "2 tokens"),
        (["--site", "resid_per"], "Did you mean 'resid_pre'"),
        (["--over", "layer,posiiton"], "Did you mean 'position'"),
        (["--over", "layer,position,head"], "at most two axes"),
        (["--png", "grid.pdf"], ".png"),
        (["--clean", ""], "no tokens"),
    ],
)
def test_patch_errors(capsys, loaded, words, says):
    assert main([*PATCH, *words]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


def test_logits(capsys, loaded):
    assert main(["logits", "tiny", CLEAN, "--top", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    tokens = loaded.tokenizer.encode(CLEAN)
    logits = np.asarray(core.run(loaded.model, jnp.array(tokens))[-1])
    assert found["tokens"] == tokens
    expected = float(jax.nn.logsumexp(logits))
    assert found["log_sum_exp"] == pytest.approx(expected, abs=1e-5)
    assert [e["id"] for e in found["top"]] == np.argsort(-logits)[:3].tolist()
    assert found["top"][0]["logit"] == pytest.approx(float(logits.max()))
    assert main(["logits", "tiny", CLEAN]) == 0
    assert "probability" in capsys.readouterr().out


def test_attention(capsys, loaded, tmp_path):
    words = ["attention", "tiny", CLEAN + " <b>", "--layer", "1"]
    assert main([*words, "--out", "page.html"]) == 0
    assert "Page: page.html" in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    assert "<b>" not in page
    assert "http" not in page
    assert main(words) == 0
    assert (tmp_path / "attention-layer1.html").exists()


@pytest.mark.parametrize("layer", ["3", "-1"])
def test_attention_layer_out_of_range(capsys, loaded, layer):
    assert main(["attention", "tiny", CLEAN, f"--layer={layer}"]) == 2
    assert "layers 0 to 2" in capsys.readouterr().err


def test_page_that_cannot_be_written(capsys, loaded, tmp_path):
    (tmp_path / "file").write_text("")
    words = ["attention", "tiny", CLEAN, "--layer", "0", "--out", "file/page.html"]
    assert main(words) == 2
    assert "annot write" in capsys.readouterr().err
