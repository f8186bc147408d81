"""Four-bit weights with shared exponents, against values written out by hand."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from mijax._errors import LoadError
from mijax.io import Mxfp4Tensors, SafeTensors

# Value of each code: a sign, two bits of exponent and one of mantissa.
CODES = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]


def tensors(tmp_path, blocks, scales):
    arrays = {"w_blocks": blocks, "w_scales": scales, "b": np.ones(2, np.float32)}
    save_file(arrays, tmp_path / "model.safetensors")
    return SafeTensors(tmp_path / "model.safetensors")


def test_low_bits_come_first_and_scales_are_powers_of_two(tmp_path):
    blocks = np.zeros((2, 1, 2, 16), np.uint8)
    # Codes 0 to 15 twice, as pairs of low and high bits, in one block.
    blocks[1, 0, 1] = [low + 16 * (low + 1) for low in range(0, 16, 2)] * 2
    scales = np.full((2, 1, 2), 127, np.uint8)
    scales[1, 0, 1] = 130
    found = Mxfp4Tensors(tensors(tmp_path, blocks, scales))
    assert found.shapes == {"w": (2, 1, 64), "b": (2,)}
    expected = np.zeros((2, 1, 64))
    expected[1, 0, 32:] = np.tile(CODES, 2) * 8
    np.testing.assert_array_equal(found.read("w").astype(np.float64), expected)
    np.testing.assert_array_equal(found.read("b"), [1, 1])


def test_the_largest_exponent_is_not_a_number(tmp_path):
    blocks, scales = np.zeros((1, 1, 1, 16), np.uint8), np.full((1, 1, 1), 255, "u1")
    found = Mxfp4Tensors(tensors(tmp_path, blocks, scales)).read("w")
    assert np.isnan(found.astype(np.float32)).all()


@pytest.mark.parametrize("shape", [(1, 1, 1, 8), (1, 1, 2, 16)])
def test_blocks_of_another_shape_are_refused(shape, tmp_path):
    blocks, scales = np.zeros(shape, np.uint8), np.zeros((1, 1, 1), np.uint8)
    with pytest.raises(LoadError, match="w_blocks"):
        Mxfp4Tensors(tensors(tmp_path, blocks, scales))


def test_blocks_without_scales_and_of_floats_are_refused(tmp_path):
    save_file({"w_blocks": np.zeros((1, 1, 1, 16), "u1")}, tmp_path / "a.safetensors")
    with pytest.raises(LoadError, match="scales None"):
        Mxfp4Tensors(SafeTensors(tmp_path / "a.safetensors"))
    blocks = np.zeros((1, 1, 1, 16), np.float32)
    found = Mxfp4Tensors(tensors(tmp_path, blocks, np.zeros((1, 1, 1), "u1")))
    with pytest.raises(LoadError, match="uint8"):
        found.read("w")
