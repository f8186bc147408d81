"""Tokens: what is in a row, in which order rows come, and what is kept on disk."""

import json
import sys
import types

import numpy as np
import pytest

from mijax._errors import (
    LoadError,
    NetworkError,
    OutputError,
    ShapeError,
    TokenError,
)
from mijax.data import (
    Corpus,
    Tokenizer,
    Tokens,
    read_dataset,
    read_texts,
    tokenize,
)
from mijax.data.text import _corpus, _texts

DOCUMENTS = [[1, 2, 3, 4, 5], [6, 7], [8, 9, 10, 11], [12, 13, 14, 15, 16, 17, 18]]
LONG = Corpus.from_ids(np.arange(200).reshape(10, 20))


def rows(source, batches):
    state, found = source.start(), []
    for _ in range(batches):
        state, batch = source.batch(state)
        for row, length in zip(batch.tokens.tolist(), batch.lengths, strict=True):
            assert row[length:] == [0] * (len(row) - length)
            found.append(row[:length])
    return found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]]),
        ({"bos": 99}, [[99, *range(i, i + 3)] for i in range(1, 19, 3)]),
        ({"pack": False}, [[1, 2, 3, 4], [6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]),
        (
            {"pack": False, "bos": 99},
            [[99, 1, 2, 3], [99, 6, 7], [99, 8, 9, 10], [99, 12, 13, 14]],
        ),
    ],
)
def test_rows(options, expected):
    source = Tokens(Corpus.from_ids(DOCUMENTS), seq=4, batch=2, epochs=1, **options)
    assert source.windows == len(expected)
    assert sorted(rows(source, source.length)) == expected
    assert source.count() == sum(len(row) for row in expected)
    assert source.count((99, 6)) == sum(len(set(r) - {99, 6}) for r in expected)


def test_the_separator_ends_every_document():
    corpus = Corpus.from_ids(DOCUMENTS, separator=50)
    assert corpus.ids.tolist() == [i for row in DOCUMENTS for i in [*row, 50]]
    source = Tokens(corpus, seq=9, batch=4, pack=False, epochs=1)
    assert sorted(rows(source, 1)) == [[*row, 50] for row in DOCUMENTS]


def test_every_row_once_per_epoch_in_another_order():
    source = Tokens(LONG, seq=10, batch=4, seed=3)
    found = rows(source, 10)
    first, second = found[:20], found[20:]
    assert sorted(first) == sorted(second) == LONG.ids.reshape(20, 10).tolist()
    assert first != second
    assert first != sorted(first)
    assert rows(source, 10) == found
    assert rows(Tokens(LONG, seq=10, batch=4, seed=4), 5) != first


def test_goes_on_from_an_integer():
    source = Tokens(LONG, seq=10, batch=4, seed=3)
    found = rows(source, 9)
    state, batch = source.batch(np.asarray(7, np.int32))
    assert int(state) == 8
    assert batch.tokens.tolist() == found[28:32]
    assert source.length is None


def test_epochs_end():
    source = Tokens(LONG, seq=10, batch=8, epochs=2)
    assert source.length == 5
    assert sorted(rows(source, 5)) == sorted(LONG.ids.reshape(20, 10).tolist() * 2)
    with pytest.raises(TokenError, match="2 epochs of 20 rows are over after 5"):
        source.batch(np.asarray(5, np.int32))
    source = Tokens(LONG, seq=10, batch=16, epochs=1)
    _, last = source.batch(np.asarray(1, np.int32))
    assert last.lengths.tolist() == [10] * 4 + [0] * 12


def test_processes_share_a_batch(monkeypatch):
    source = Tokens(LONG, seq=10, batch=4)
    whole = rows(source, 3)
    monkeypatch.setattr("jax.process_count", lambda: 2)
    shares = []
    for process in range(2):
        monkeypatch.setattr("jax.process_index", lambda process=process: process)
        shares.append(np.asarray(rows(source, 3)).reshape(3, 2, 10))
    assert np.concatenate(shares, axis=1).reshape(12, 10).tolist() == whole
    with pytest.raises(ShapeError, match="3 rows cannot be shared by 2 processes"):
        Tokens(LONG, seq=10, batch=3).batch(source.start())


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"seq": 101}, TokenError, "too small: 200 tokens in 10 documents make 1 rows"),
        ({"batch": 21}, TokenError, "a batch takes 21"),
        ({"pack": False, "batch": 11}, TokenError, "make 10 rows"),
        ({"seq": 1, "bos": 5}, ShapeError, "needs a token besides bos"),
        ({"epochs": 0}, ShapeError, "all sizes are positive"),
        ({"seed": -1}, ShapeError, "A seed is an integer from 0"),
    ],
)
def test_refuses_before_work_starts(options, error, says):
    with pytest.raises(error, match=says):
        Tokens(LONG, **{"seq": 10, "batch": 2} | options)


def test_ids_take_little_memory():
    assert LONG.ids.dtype == np.uint16
    assert Corpus.from_ids([[1 << 16]]).ids.dtype == np.int32
    for documents in ([], [[]], [[-1]], [[1 << 31]]):
        with pytest.raises(TokenError, match="at least one token, and ids from 0"):
            Corpus.from_ids(documents)


TEXTS = ["a cat sat", " a hat", "", "the mat"]


@pytest.fixture
def tokenizer():
    return Tokenizer.from_pieces([" cat", " sat", " hat", " mat", "the", " a"])


def test_tokenised_once(tokenizer, tmp_path, monkeypatch):
    corpus = tokenize(tokenizer, TEXTS, separator=0)
    expected = [[*tokenizer.encode(text), 0] for text in TEXTS if text]
    assert corpus.ids.tolist() == [i for row in expected for i in row]
    assert corpus.ends.tolist() == np.cumsum([len(row) for row in expected]).tolist()
    monkeypatch.setattr(_corpus, "CHARACTERS", 8)
    kept = tokenize(tokenizer, TEXTS, separator=0, folder=tmp_path / "ids")
    assert isinstance(kept.ids, np.memmap)
    monkeypatch.delattr(_corpus.Work, "documents")
    again = tokenize(tokenizer, iter(TEXTS), separator=0, folder=tmp_path / "ids")
    for other in (kept, again):
        np.testing.assert_array_equal(other.ids, corpus.ids)
        np.testing.assert_array_equal(other.ends, corpus.ends)
        assert (other.digest, other.separator) == (corpus.digest, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["ids"]


def test_another_corpus_is_refused(tokenizer, tmp_path):
    folder = tmp_path / "ids"
    tokenize(tokenizer, TEXTS, folder=folder)
    others = (
        (tokenizer, [*TEXTS, "more"], None),
        (tokenizer, ["a cat", " sat a hat", "the mat"], None),
        (tokenizer, TEXTS, 0),
        (Tokenizer.from_pieces([" cat"]), TEXTS, None),
    )
    for other, texts, separator in others:
        with pytest.raises(OutputError, match="ids holds another corpus"):
            tokenize(other, texts, separator=separator, folder=folder)


def test_damage_and_interruption(tokenizer, tmp_path):
    def broken():
        yield from TEXTS
        raise RuntimeError("stopped")

    folder = tmp_path / "ids"
    with pytest.raises(RuntimeError, match="stopped"):
        tokenize(tokenizer, broken(), folder=folder)
    assert not list(tmp_path.iterdir())
    tokenize(tokenizer, TEXTS, folder=folder)
    ids = bytearray((folder / "ids.bin").read_bytes())
    ids[3] ^= 1
    (folder / "ids.bin").write_bytes(ids)
    with pytest.raises(LoadError, match=r"ids\.bin is damaged"):
        tokenize(tokenizer, TEXTS, folder=folder)
    (folder / "ids.bin").write_bytes(ids[:-1])
    with pytest.raises(LoadError, match=r"ids\.bin has 13 bytes instead of 14"):
        tokenize(tokenizer, TEXTS, folder=folder)
    (tmp_path / "other").mkdir()
    with pytest.raises(LoadError, match=r"manifest\.json cannot be read"):
        tokenize(tokenizer, TEXTS, folder=tmp_path / "other")
    for texts in ([], [""]):
        with pytest.raises(TokenError, match="no tokens"):
            tokenize(tokenizer, texts, folder=tmp_path / "none")
    with pytest.raises(TokenError, match="not one text"):
        tokenize(tokenizer, "corpus.txt")


def test_files_of_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(_texts, "PIECE", 3)
    text, lines = tmp_path / "a.txt", tmp_path / "b.jsonl"
    text.write_text("one\n\n\ntwo<|é|>\n\n \n\nthree\n\n", encoding="utf-8")
    lines.write_text('{"body": "four"}\n\n{"body": "fi\\nve"}\n', encoding="utf-8")
    texts = read_texts([text, lines], field="body", separator="\n\n")
    expected = ["one", "\ntwo<|é|>", "three", "four", "fi\nve"]
    assert list(texts) == expected
    assert list(texts) == expected
    assert list(read_texts(text)) == [text.read_text(encoding="utf-8")]
    text.write_bytes(b"one\r\n\r\ntwo\r\nmore\r\n\r\nthree")
    expected = ["one", "two\r\nmore", "three"]
    assert list(read_texts(text, separator="\n\n")) == expected


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"tex": "y"}', r"line 2 has no field 'text'.*tex"),
        ("a.jsonl", b"[1]", "line 1 has no field 'text'"),
        ("a.jsonl", b'{"text": 3}', "field 'text' is int, expected text"),
        ("a.jsonl", b"{", "line 1 is not JSON"),
        ("a.txt", b"\xff\xfe", "not UTF-8"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LoadError, match=f"{name}.*{says}"):
        list(read_texts(tmp_path / name))
    with pytest.raises(LoadError, match="is not a file"):
        read_texts(tmp_path / "none.txt")
    with pytest.raises(LoadError, match="separated by nothing"):
        read_texts(tmp_path / name, separator="")


def test_data_sets_of_the_hub(monkeypatch):
    def load_dataset(name, split, **options):
        if name == "offline":
            raise ConnectionError("no route")
        return [{"story": f"{name} {split} {json.dumps(options)}"}]

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(LoadError, match="pip install datasets"):
        read_dataset("tiny")
    fake = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    texts = read_dataset("tiny", split="test", field="story", streaming=True)
    assert list(texts) == list(texts) == ['tiny test {"streaming": true}']
    with pytest.raises(LoadError, match=r"'tiny' has no field 'storey'.*'story'"):
        list(read_dataset("tiny", field="storey"))
    with pytest.raises(NetworkError, match="no route"):
        read_dataset("offline")
