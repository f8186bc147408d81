import hashlib
import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from mijax._errors import LoadError, OutputError
from mijax.io import (
    Gguf,
    SafeTensors,
    Shards,
    checkpoint_metadata,
    digest,
    load_checkpoint,
    read_json,
    replace_file,
    replace_folder,
    save_checkpoint,
    save_safetensors,
)


def one_line(caught, *words):
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert str(word) in text, text


@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16, np.int32])
def test_safetensors_round_trip(tmp_path, dtype):
    path = tmp_path / "a.safetensors"
    arrays = {"a": np.arange(6).reshape(2, 3).astype(dtype), "b": np.array(3, dtype)}
    save_safetensors(arrays, path)
    tensors = SafeTensors(path)
    assert tensors.shapes == {"a": (2, 3), "b": ()}
    for name, array in arrays.items():
        np.testing.assert_array_equal(tensors.read(name), array)
        np.testing.assert_array_equal(load_file(path)[name], array)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors"]


def test_safetensors_empty_file(tmp_path):
    path = tmp_path / "a.safetensors"
    save_safetensors({}, path)
    assert SafeTensors(path).shapes == {}


@pytest.mark.parametrize("keep", [0, 5, 20, -4])
def test_truncated_safetensors(tmp_path, keep):
    path = tmp_path / "a.safetensors"
    save_safetensors({"weight": np.ones((4, 4), np.float32)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(LoadError) as caught:
        SafeTensors(path)
    one_line(caught, path, "weight" if keep == -4 else "bytes")


def test_safetensors_shape_against_bytes(tmp_path):
    path = tmp_path / "a.safetensors"
    header = {"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(LoadError) as caught:
        SafeTensors(path).read("w")
    one_line(caught, path, "'w'")


def test_safetensors_unknown_dtype(tmp_path):
    path = tmp_path / "a.safetensors"
    header = {"w": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(LoadError) as caught:
        SafeTensors(path).read("w")
    one_line(caught, path, "'w'", "F8_E4M3")


def test_shards(tmp_path):
    for name, tensor in (("1.safetensors", "a"), ("2.safetensors", "b")):
        save_safetensors({tensor: np.ones(2, np.float32)}, tmp_path / name)
    index = tmp_path / "model.safetensors.index.json"

    def write(where):
        index.write_text(json.dumps({"weight_map": where}))

    write({"a": "1.safetensors", "b": "2.safetensors"})
    assert sorted(Shards(index).shapes) == ["a", "b"]
    assert len(Shards(index).files) == 2
    for where, word in (
        ({"a": "2.safetensors", "b": "1.safetensors"}, "'a'"),
        ({"a": "1.safetensors", "b": "2.safetensors", "c": "1.safetensors"}, "'c'"),
        ({"a": "1.safetensors"}, None),
        ({"a": "1.safetensors", "b": "3.safetensors"}, "3.safetensors"),
    ):
        write(where)
        if word is None:
            assert sorted(Shards(index).shapes) == ["a"]
            continue
        with pytest.raises(LoadError) as caught:
            Shards(index)
        one_line(caught, word)
    index.write_text("{}")
    with pytest.raises(LoadError) as caught:
        Shards(index)
    one_line(caught, index, "weight_map")


@pytest.mark.parametrize("text", [None, "{", "[1]", "\xff"])
def test_json_errors(tmp_path, text):
    path = tmp_path / "config.json"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(LoadError) as caught:
        read_json(path)
    one_line(caught, path)


@pytest.mark.parametrize(
    "content", [None, b"", b"GGUF", b"PK\x03\x04" + bytes(60), b"GGUF" + b"\xff" * 64]
)
def test_gguf_errors(tmp_path, content):
    path = tmp_path / "a.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LoadError) as caught:
        Gguf(path)
    one_line(caught, path)


def test_digest(tmp_path):
    files = [tmp_path / "b", tmp_path / "a"]
    files[0].write_bytes(b"2")
    files[1].write_bytes(b"1")
    assert digest(files) == "sha256:" + hashlib.sha256(b"12").hexdigest()


def test_failed_writes_leave_what_was_there(tmp_path):
    def fail(path):
        (path / "half" if path.is_dir() else path).write_text("half")
        raise RuntimeError

    file, folder = tmp_path / "file", tmp_path / "folder"
    replace_file(file, lambda path: path.write_text("old") and None)
    replace_folder(folder, lambda path: (path / "a").write_text("old") and None)
    for replace, path in ((replace_file, file), (replace_folder, folder)):
        with pytest.raises(RuntimeError):
            replace(path, fail)
    assert file.read_text() == "old"
    assert sorted(p.name for p in folder.iterdir()) == ["a", "mijax_files.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]
    replace_folder(folder, lambda path: (path / "b").write_text("new") and None)
    assert sorted(p.name for p in folder.iterdir()) == ["b", "mijax_files.json"]


def test_output_errors(tmp_path):
    (tmp_path / "file").write_text("")
    for replace, path in (
        (replace_folder, tmp_path / "file"),
        (replace_folder, tmp_path / "file" / "below"),
        (replace_file, tmp_path / "file" / "below"),
    ):
        with pytest.raises(OutputError) as caught:
            replace(path, lambda scratch: scratch.write_text("") and None)
        one_line(caught, path)


def test_checkpoint(tmp_path):
    tree = {"a": jnp.arange(3.0), "b": [jnp.ones((2, 2), jnp.bfloat16), "text"]}
    like = {"a": jnp.zeros(3), "b": [jnp.zeros((2, 2), jnp.bfloat16), "text"]}
    path = tmp_path / "checkpoint"
    save_checkpoint(tree, path, metadata={"step": 3})
    loaded = load_checkpoint(like, path)
    np.testing.assert_array_equal(loaded["a"], tree["a"])
    assert loaded["b"][0].dtype == jnp.bfloat16
    assert loaded["b"][1] == "text"
    assert checkpoint_metadata(path) == {"step": 3}
    save_checkpoint({"a": jnp.zeros(1)}, path)
    assert load_checkpoint({"a": jnp.ones(1)}, path)["a"][0] == 0
    with pytest.raises(LoadError) as caught:
        load_checkpoint({"a": jnp.ones(2)}, path)
    one_line(caught, path, "'a'", "(1,)", "(2,)")
    with pytest.raises(LoadError) as caught:
        load_checkpoint({"z": jnp.ones(1)}, path)
    one_line(caught, path, "'a'")
    with pytest.raises(LoadError) as caught:
        load_checkpoint({"z": jnp.ones(1)}, tmp_path / "none")
    one_line(caught, tmp_path / "none")


def test_two_arrays_of_one_name_are_refused(tmp_path):
    tree = {"a.b": jnp.ones(2), "a": {"b": jnp.zeros(2)}}
    with pytest.raises(OutputError, match=r"'a\.b'"):
        save_checkpoint(tree, tmp_path / "a")
    assert not (tmp_path / "a").exists()
