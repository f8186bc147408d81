"""Files of llama2.c: the golden Llama written in that format, and a published model."""

import os
import struct
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from mijax import models
from mijax._errors import LoadError

HF = Path(__file__).parents[1] / "golden" / "hf" / "llama"
LAYER = (
    "input_layernorm",
    *(f"self_attn.{x}_proj" for x in "qkvo"),
    "post_attention_layernorm",
    *(f"mlp.{x}_proj" for x in ("gate", "down", "up")),
)
VOCABULARY = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{n:02X}>" for n in range(256))]
VOCABULARY += [" ", "a", "b", " a", "ab", " ab"]


def neighbors(x):
    """Rows of Q and K as Meta's files have them: those of a pair are neighbors."""
    return x.reshape(-1, 2, 4, x.shape[1]).swapaxes(1, 2).reshape(x.shape)


def write(path, *, vocab=300):
    found = load_file(HF / "model.safetensors")
    arrays = [found["model.embed_tokens.weight"]]
    for name in LAYER:
        for layer in range(3):
            x = found[f"model.layers.{layer}.{name}.weight"]
            turned = name in ("self_attn.q_proj", "self_attn.k_proj")
            arrays.append(neighbors(x) if turned else x)
    arrays += [
        found["model.norm.weight"],
        np.zeros(2 * 64 * 4),
        found["lm_head.weight"],
    ]
    # A negative vocabulary: embedding and unembedding differ.
    header = struct.pack("<7i", 32, 80, 3, 4, 2, -vocab, 64)
    path.write_bytes(header + b"".join(x.astype("<f4").tobytes() for x in arrays))
    return path


def write_vocabulary(path, pieces):
    rows = [struct.pack("<fi", -i, len(p)) + p.encode() for i, p in enumerate(pieces)]
    path.write_bytes(struct.pack("<i", 7) + b"".join(rows))


def test_same_weights_as_hugging_face(tmp_path):
    loaded = models.load(write(tmp_path / "a.bin"))
    ours, theirs = (
        jax.tree_util.tree_leaves_with_path(eqx.filter(m.model, eqx.is_array))
        for m in (loaded, models.load(HF))
    )
    assert [path for path, _ in ours] == [path for path, _ in theirs]
    for (_, a), (_, b) in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
    assert loaded.spec.eps == 1e-5
    assert loaded.text is None
    with pytest.raises(LoadError, match=r"has no tok300.bin or tokenizer.bin"):
        _ = loaded.tokenizer


def test_vocabulary(tmp_path):
    path, pieces = write(tmp_path / "a.bin"), [*VOCABULARY]
    pieces += [f"x{n}" for n in range(300 - len(pieces))]
    write_vocabulary(tmp_path / "tokenizer.bin", pieces)
    text = models.load(path).tokenizer
    assert (text.bos, text.eos) == (1, 2)
    assert text.pieces(text.encode("ab b")) == [" ab", " ", "b"]
    assert text.decode(text.encode("ab é")) == "ab é"


def test_broken_files_are_refused(tmp_path):
    path = write(tmp_path / "a.bin")
    path.write_bytes(path.read_bytes()[:-4])
    # Only its length tells such a file from weights of torch.
    with pytest.raises(LoadError, match="not a complete llama2"):
        models.load(path)
    write(path)
    write_vocabulary(tmp_path / "tokenizer.bin", VOCABULARY)
    with pytest.raises(LoadError, match=r"has 265 tokens, the model 300"):
        models.load(path)
    (tmp_path / "tokenizer.bin").write_bytes(b"\x07\0\0\0" + b"\xff" * 9)
    with pytest.raises(LoadError, match="a piece ends after the file"):
        models.load(path)


FOLDER = os.environ.get("MIJAX_TEST_DATA")


@pytest.mark.skipif(FOLDER is None, reason="MIJAX_TEST_DATA is not set")
def test_published_stories():
    loaded = models.load(Path(FOLDER) / "models" / "stories260K.bin")
    tokens = [loaded.tokenizer.bos, *loaded.tokenizer.encode("Once upon a time")]
    assert tokens == [1, 403, 407, 261, 378]
    logits = loaded.model(jnp.asarray(tokens))[0][-1]
    assert int(logits.argmax()) == 432
    np.testing.assert_allclose(logits[432], 17.7994, atol=1e-4)
