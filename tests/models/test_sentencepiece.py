"""SentencePiece vocabularies of GGUF files, against the `sentencepiece` package."""

import json
from pathlib import Path

import gguf
import pytest

from mijax._errors import LoadError
from mijax.io import Gguf
from mijax.models._gguf_tokenizer import gguf_tokenizer

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden" / "sentencepiece.json").read_text()
)


def write(path, golden, prefix, **lists):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(lists.get("model", "llama"))
    writer.add_token_list(lists.get("pieces", golden["pieces"]))
    writer.add_token_scores(lists.get("scores", golden["scores"]))
    writer.add_token_types(lists.get("kinds", golden["kinds"]))
    writer.add_add_space_prefix(prefix)
    writer.add_bos_token_id(lists.get("bos", 1))
    writer.add_chat_template(
        "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Gguf(path)


@pytest.mark.parametrize(("name", "prefix"), [("prefixed", True), ("plain", False)])
def test_splits_texts_as_sentencepiece_does(tmp_path, name, prefix):
    golden = GOLDEN[name]
    tokenizer, reason = gguf_tokenizer(write(tmp_path / "a.gguf", golden, prefix))
    assert reason == ""
    for text, ids in zip(GOLDEN["texts"], golden["ids"], strict=True):
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.decode(ids) == text
    mary = tokenizer.token(" Mary")
    assert golden["pieces"][mary] == "▁Mary"
    assert tokenizer.encode("Mary", add_special=True)[0] == 1
    said = tokenizer.chat([{"role": "user", "content": "Mary"}])
    assert tokenizer.encode(said)[0] == 1


@pytest.mark.parametrize(
    ("lists", "word"),
    [
        ({"scores": [0.0]}, "scores"),
        ({"kinds": [1]}, "token_type"),
        ({"bos": 10**6}, "bos_token_id"),
        ({"pieces": ["a"] * len(GOLDEN["plain"]["pieces"])}, "twice"),
    ],
)
def test_lists_that_do_not_fit(tmp_path, lists, word):
    file = write(tmp_path / "a.gguf", GOLDEN["plain"], False, **lists)
    with pytest.raises(LoadError, match=word):
        gguf_tokenizer(file)


def test_other_kinds_have_no_text_and_say_why(tmp_path):
    file = write(tmp_path / "a.gguf", GOLDEN["plain"], False, model="t5")
    tokenizer, reason = gguf_tokenizer(file)
    assert tokenizer is None
    assert "'t5'" in reason
