"""Files that two readers could read in two ways, or that ask for too much."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from flax import serialization

from mijax._errors import LoadError, MijaxError, printable
from mijax.io import (
    FlaxTensors,
    Gguf,
    SafeTensors,
    Shards,
    read_json,
    save_safetensors,
)
from mijax.io._regions import check_weights


def safetensors(path, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(data))
    return path


def entry(begin, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


ONE = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
HEADERS = {
    "overlap": ({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, "'b'.*overlaps"),
    "gap": ({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, "'b'.*gap"),
    "same bytes": ({"a": entry(0, 8, [2]), "b": entry(0, 8, [2])}, "overlaps"),
    "short": ({"a": entry(0, 8, [2])}, "'a' ends at byte 8"),
    "shape": ({"a": entry(0, 12, [2])}, "'a' has 12 bytes"),
    "huge shape": ({"a": entry(0, 12, [2**40, 2**40])}, "'a'"),
    "negative": ({"a": entry(0, 12, [-3])}, r"'shape'\[0\] is -3"),
    "text": ({"a": entry(0, 12, ["3"])}, r"'shape'\[0\] is '3'"),
    "bool": ({"a": entry(0, 4, [True])}, r"'shape'\[0\] is True"),
    "three offsets": ({"a": entry(0, 12, [3]) | {"data_offsets": [0, 4, 12]}}, "offs"),
    "unknown key": ({"a": entry(0, 12, [3]) | {"strides": [1]}}, "'strides'"),
    "missing key": ({"a": {"dtype": "F32", "shape": [3]}}, "'data_offsets' is missing"),
    "no object": ({"a": [1]}, r"\[1\]"),
    "complex": ({"a": entry(0, 12, [1], "C64")}, "C64"),
    "given twice": (b"{" + ONE + b"," + ONE + b"}", "the key 'a' is given twice"),
    "deep": (b"[" * 100_000, "nested too deeply"),
    "list": (b"[]", "safetensors"),
    "nan": (b'{"a": NaN}', "NaN"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_safetensors_headers(tmp_path, case):
    header, words = HEADERS[case]
    path = safetensors(tmp_path / "a.safetensors", header, 12 if case != "short" else 4)
    with pytest.raises(LoadError, match=words) as caught:
        SafeTensors(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("weight_map", "word"),
    [
        ({"a": "1.safetensors", "b": "2.safetensors"}, "'a' is in two shards"),
        ({"a": "../1.safetensors"}, "same folder"),
        ({"a": 3}, "same folder"),
        ({"a": None}, "same folder"),
        ({}, "weight_map"),
    ],
)
def test_indices_of_shards(tmp_path, weight_map, word):
    one = np.ones(1, np.float32)
    save_safetensors({"a": one}, tmp_path / "1.safetensors")
    save_safetensors({"a": one + 1, "b": one}, tmp_path / "2.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(LoadError, match=word):
        Shards(index)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('{"eps": NaN}', "NaN"),
        ('{"eps": -Infinity}', "Infinity"),
        ('{"eps": 1e999}', "1e999"),
        ('{"a": {"b": 1, "b": 2}}', "'b' is given twice"),
        ("[" * 100_000, "nested"),
    ],
)
def test_json_that_is_read_in_two_ways(tmp_path, text, word):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(LoadError, match=word):
        read_json(path)


def write_gguf(path, fields=None):
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in (fields or {}).items():
        writer.add_uint32(key, value)
    writer.add_tensor("first", np.arange(3, dtype=np.float32))
    writer.add_tensor("second", np.arange(64, dtype=np.float16).reshape(2, 32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def changed(path, name, shift, value):
    """Overwrites bytes after a tensor's name: axes, sizes, type, offset."""
    data = bytearray(path.read_bytes())
    place = data.index(name) + len(name) + shift
    data[place : place + len(value)] = value
    path.write_bytes(bytes(data))
    return path


def test_gguf_reads_what_was_written(tmp_path):
    file = Gguf(write_gguf(tmp_path / "a.gguf"))
    np.testing.assert_array_equal(file.read("first"), [0, 1, 2])
    assert file.read("second").tolist() == np.arange(64.0).reshape(2, 32).tolist()


@pytest.mark.parametrize(
    ("name", "shift", "value", "word"),
    [
        (b"second", 24, (0).to_bytes(8, "little"), "'second'.*overlaps"),
        (b"second", 24, (33).to_bytes(8, "little"), "gap"),
        (b"second", 24, (64).to_bytes(8, "little"), "gap"),
        (b"first", 4, (2**62).to_bytes(8, "little"), "first|second"),
        (b"first", 4, bytes(8), "'first' has shape"),
        (b"first", 0, (2**32 - 1).to_bytes(4, "little"), "too early"),
        (b"first", 12, (26).to_bytes(4, "little"), "I32"),
        (b"first", 12, (24).to_bytes(4, "little"), "I8"),
    ],
)
def test_gguf_tensors_that_are_out_of_place(tmp_path, name, shift, value, word):
    path = changed(write_gguf(tmp_path / "a.gguf"), name, shift, value)
    with pytest.raises(LoadError, match=word):
        Gguf(path)


def test_gguf_names_and_alignment(tmp_path):
    path = write_gguf(tmp_path / "a.gguf")
    data = path.read_bytes()
    again = tmp_path / "b.gguf"
    again.write_bytes(data.replace(b"second", b"first\0"))
    assert "first\0" in Gguf(again).shapes
    for align in (0, 3, 48):
        with pytest.raises(LoadError, match="power of two"):
            Gguf(write_gguf(tmp_path / "c.gguf", {"general.alignment": align}))
    again.write_bytes(data + bytes(64))
    with pytest.raises(LoadError, match="bytes of data"):
        Gguf(again)
    longer = data.replace(b"\x06\0\0\0\0\0\0\0second", b"\x05\0\0\0\0\0\0\0first")
    again.write_bytes(longer + bytes(1))
    with pytest.raises(LoadError, match="'first' is given twice"):
        Gguf(again)


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (np.ones(2, np.int32), "int32"),
        (np.ones(2, np.complex64), "complex64"),
        (np.ones(2, bool), "bool"),
        (np.array([1, np.nan], np.float32), "NaN"),
        (np.array([1, np.inf], np.float16), "NaN or infinite"),
    ],
)
def test_weights_are_finite_floats(array, word):
    with pytest.raises(LoadError, match=word):
        check_weights(array, "w", Path("a"))


def test_terminal_escapes_are_shown(tmp_path):
    """Names from files reach terminals through error messages and tables."""
    name = "\x1b[31mred\x07\u202e\ud800"
    assert printable(name) == r"\x1b[31mred\x07\u202e\ud800"
    assert printable("a\nb\x1b", keep="\n") == "a\nb\\x1b"
    assert str(MijaxError(name)) == printable(name)
    path = safetensors(tmp_path / "a.safetensors", {name: entry(0, 4, [2])}, 4)
    with pytest.raises(LoadError) as caught:
        SafeTensors(path)
    assert str(caught.value).isprintable()


def test_flax_files_that_give_a_name_twice(tmp_path):
    path = tmp_path / "flax_model.msgpack"
    one = serialization.msgpack_serialize({"a": {"kernel": np.ones((1, 2))}})
    path.write_bytes(one)
    assert FlaxTensors(path).read("a.weight").shape == (2, 1)
    both = {"a": {"kernel": np.ones((1, 2)), "scale": np.ones(2)}}
    path.write_bytes(serialization.msgpack_serialize(both))
    with pytest.raises(LoadError, match=r"'a.weight' is given twice"):
        FlaxTensors(path)
    path.write_bytes(b"\x82" + one[1:] + one[1:])
    with pytest.raises(LoadError, match="'a' is given twice"):
        FlaxTensors(path)
