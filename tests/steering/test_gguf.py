"""Control vectors of llama.cpp: files of repeng in, files for the gguf package out."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mijax
from mijax.steering import Directions, load_gguf, save_gguf

gguf = pytest.importorskip("gguf")
GOLDEN = Path(__file__).parents[1] / "golden/steering"
MADE = Directions(jax.random.normal(jax.random.key(0), (3, 12)), layers=[2, 1, 7])


def test_a_file_of_repeng_is_read():
    found = load_gguf(GOLDEN / "control.gguf", width=12)
    assert found.layers == (1, 2, 3)
    assert (found.site, found.method) == ("resid_post", "control vector for tiny")
    expected = np.load(GOLDEN / "directions.npz")["pca_diff"]
    np.testing.assert_array_equal(found.vectors, expected)


def test_round_trip_with_the_gguf_package(tmp_path):
    path = tmp_path / "made.gguf"
    save_gguf(MADE, path, model_hint="llama")
    reader = gguf.GGUFReader(path)
    field = reader.get_field("general.architecture")
    assert bytes(field.parts[-1]).decode() == "controlvector"
    hint = reader.get_field("controlvector.model_hint")
    assert bytes(hint.parts[-1]).decode() == "llama"
    assert reader.get_field("controlvector.layer_count").parts[-1].tolist() == [3]
    rows = {tensor.name: tensor.data for tensor in reader.tensors}
    assert sorted(rows) == ["direction.1", "direction.2", "direction.7"]
    for layer in MADE.layers:
        assert rows[f"direction.{layer}"].dtype == np.float32
        np.testing.assert_array_equal(rows[f"direction.{layer}"], MADE.vector(layer))
    again = load_gguf(path)
    assert again.layers == (1, 2, 7)
    np.testing.assert_array_equal(again.vectors, MADE.at_layers([1, 2, 7]).vectors)


def other(path, *, architecture="controlvector", **rows):
    writer = gguf.GGUFWriter(str(path), architecture)
    for name, row in rows.items():
        writer.add_tensor(name.replace("_", "."), np.asarray(row, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "llama", "direction_1": [1, 2]}, "has architecture 'llama'"),
        ({"direction_01": [1, 2]}, "is not named"),
        ({"direction_1": [1, 2], "direction_2": [1, 2, 3]}, "the same width"),
        ({"direction_1": [[1, 2]]}, "one vector"),
        ({}, "the same width"),
        ({"direction_1": [1, 2]}, "model has width 32"),
    ],
)
def test_bad_files(tmp_path, options, message):
    path = other(tmp_path / "bad.gguf", **options)
    with pytest.raises(mijax.MijaxError, match=message):
        load_gguf(path, width=32)


@pytest.mark.parametrize(
    "made",
    [
        Directions(jnp.ones((1, 4)), layers=[0]),
        Directions(jnp.ones((1, 4)), layers=[1], site="resid_pre"),
    ],
)
def test_what_llama_cpp_cannot_read_is_not_written(tmp_path, made):
    with pytest.raises(mijax.MijaxError, match="block 1 and later"):
        save_gguf(made, tmp_path / "none.gguf", model_hint="llama")
    assert not list(tmp_path.iterdir())
