"""Makes onnx/tiny.onnx: weights as an export of torch has them, written by onnx.

Needs onnx 1.23.2 and numpy. `onnx/tiny.npz` has the same numbers by the names and in
the shapes of the model.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).parent / "onnx"


def main():
    """Write a graph with a named bias, a matrix without a name and other types."""
    draw = np.random.default_rng(0)
    weight = draw.normal(size=(2, 3)).astype(np.float32)
    bias = draw.normal(size=3).astype(np.float16)
    table = draw.normal(size=(1, 4, 2)).astype(np.float32)
    loose = draw.normal(size=5).astype(np.float32)
    tensors = [
        numpy_helper.from_array(bias, "layer.0.fc1.bias"),
        numpy_helper.from_array(weight, "onnx::MatMul_7"),
        numpy_helper.from_array(table, "onnx::Reshape_9"),
        # The numbers of this one are not raw bytes but a list.
        helper.make_tensor("loose", TensorProto.FLOAT, [5], loose.tolist()),
        helper.make_tensor("counts", TensorProto.INT64, [2], [3, 4]),
    ]
    nodes = [
        helper.make_node(
            "MatMul", ["x", "onnx::MatMul_7"], ["y"], name="/layer.0/fc1/MatMul"
        ),
        helper.make_node("Add", ["y", "layer.0.fc1.bias"], ["z"], name="/layer.0/Add"),
        helper.make_node(
            "Reshape", ["onnx::Reshape_9", "counts"], ["t"], name="/embeddings/Reshape"
        ),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xz"
    ]
    graph = helper.make_graph(nodes, "tiny", values[:1], values[1:], tensors)
    HERE.mkdir(exist_ok=True)
    onnx.save(helper.make_model(graph), HERE / "tiny.onnx")
    np.savez(
        HERE / "tiny.npz",
        **{
            "layer.0.fc1.bias": bias,
            "layer.0.fc1.weight": weight.T,
            "embeddings.Reshape": table,
            "loose": loose,
        },
    )


if __name__ == "__main__":
    main()
