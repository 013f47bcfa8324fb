"""Small ONNX files for tests, and ways to damage them."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT
W, V = (np.random.default_rng(7).normal(size=shape).astype(np.float32) for shape in ((3, 4), (2, 4)))


def constant(name: str, values: Any, dtype: Any = np.float32) -> Any:
    return numpy_helper.from_array(np.asarray(values, dtype=dtype), name)


def graph(
    nodes: Sequence[Any], shape: Sequence[Any], initializers: Sequence[Any] = (), opset: int = 17, kind: int = FLOAT,
    outputs: Sequence[str] = ("y",),
) -> Any:  # fmt: skip
    """A model of one input x; its outputs' shapes are left open."""
    made = helper.make_graph(
        list(nodes), "g", [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs], list(initializers),
    )  # fmt: skip
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def saved(model: Any, folder: Path, name: str = "net.onnx") -> Path:
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def mlp(opset: int = 17, kind: int = FLOAT, shape: Sequence[Any] = (1, 4)) -> Any:
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    rng = np.random.default_rng(0)
    return graph(
        [
            helper.make_node("Gemm", ["x", "w", "b"], ["h"], transB=1), helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "v"], ["y"]),
        ],
        shape,
        [
            constant("w", rng.normal(size=(5, 4)), dtype), constant("b", rng.normal(size=5), dtype),
            constant("v", rng.normal(size=(5, 3)), dtype),
        ],
        opset, kind,
    )  # fmt: skip


def convolutional() -> Any:
    """Constant nodes, a shape that is computed, pooling, padding and a Clip."""
    rng = np.random.default_rng(1)
    return graph(
        [
            helper.make_node("Constant", [], ["k"], value=constant("", rng.normal(size=(3, 2, 3, 3)))),
            helper.make_node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
            helper.make_node("Clip", ["c", "", "six"], ["d"]),
            helper.make_node("MaxPool", ["d"], ["m"], kernel_shape=[2, 2]),
            helper.make_node("Shape", ["m"], ["s"]), helper.make_node("Gather", ["s", "zero"], ["n"], axis=0),
            helper.make_node("Concat", ["n", "rest"], ["t"], axis=0), helper.make_node("Reshape", ["m", "t"], ["y"]),
        ],
        (1, 2, 6, 6),
        [constant("six", 6.0), constant("zero", [0], np.int64), constant("rest", [-1], np.int64)],
    )  # fmt: skip


def recurrent() -> Any:
    rng = np.random.default_rng(2)
    return graph(
        [
            helper.make_node("LSTM", ["x", "w", "r", "b"], ["o", "h", "c"], hidden_size=3),
            helper.make_node("Squeeze", ["h", "zero"], ["y"]),
        ],
        (2, 1, 2),
        [
            constant("w", rng.normal(size=(1, 12, 2))), constant("r", rng.normal(size=(1, 12, 3))),
            constant("b", rng.normal(size=(1, 24))), constant("zero", [0], np.int64),
        ],
    )  # fmt: skip


def spectral() -> Any:
    """A filter between transforms, and frames of a short-time one."""
    node = helper.make_node
    return graph(
        [
            node("DFT", ["x", "eight", "axis"], ["f"], onesided=1), node("Mul", ["f", "filter"], ["g"]),
            node("DFT", ["g", "", "axis"], ["back"], inverse=1, onesided=1), node("Tanh", ["back"], ["t"]),
            node("STFT", ["t", "two", "window"], ["s"]), node("ReduceL2", ["s", "last"], ["y"]),
        ],
        (1, 6, 1),
        [
            constant("eight", 8, np.int64), constant("axis", 1, np.int64), constant("two", 2, np.int64),
            constant("filter", np.random.default_rng(3).normal(size=(1, 5, 1))),
            constant("window", [0.5, 1.0, 1.0, 0.5]), constant("last", [-1], np.int64),
        ],
        opset=20,
    )  # fmt: skip


def state_space(batch: Any = "b", axis: str = "b") -> Any:
    """y = scale · tanh(x W) + h V, or without the state where ``which`` is not 16: a model of four inputs."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["xw"]), helper.make_node("Tanh", ["xw"], ["t"]),
        helper.make_node("Mul", ["t", "scale"], ["st"]),
        helper.make_node("MatMul", ["h", "v"], ["hv"]), helper.make_node("Add", ["st", "hv"], ["sum"]),
        helper.make_node("Equal", ["which", "sixteen"], ["c"]),
        helper.make_node("If", ["c"], ["y"], then_branch=_branch("sum"), else_branch=_branch("st")),
    ]  # fmt: skip
    model = graph(nodes, (batch, 3), [constant("w", W), constant("v", V), constant("sixteen", 16, np.int64)])
    for name, kind, shape in (("h", FLOAT, (axis, 2)), ("which", TensorProto.INT64, ()), ("scale", FLOAT, ())):
        model.graph.input.append(helper.make_tensor_value_info(name, kind, shape))
    model.graph.input.append(helper.make_tensor_value_info("w", FLOAT, (3, 4)))  # an initializer is no input
    return model


def _branch(name: str) -> Any:
    out = [helper.make_tensor_value_info(f"{name}_out", 1, None)]
    return helper.make_graph([helper.make_node("Identity", [name], [f"{name}_out"])], name, [], out)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Bytes of a file with something changed, cut off, put in or repeated."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        place = rng.randrange(len(data))
        kind = rng.randrange(6)
        if kind == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[place] = rng.choice((0, 1, 2, 7, 8, 127, 128, 255))
        elif kind == 2:
            del data[place : place + rng.choice((1, 2, 8, len(data)))]
        elif kind == 3:
            data[place:place] = bytes(rng.randrange(256) for _ in range(rng.choice((1, 2, 9))))
        elif kind == 4:
            end = min(len(data), place + rng.randrange(1, 60))
            data[place:place] = data[place:end]
        else:
            other = rng.randrange(len(data))
            data[place], data[other] = data[other], data[place]
        data = data or bytearray(b"\x08")
    return bytes(data)


def changed(model: Any, rng: random.Random) -> Any:
    """A model that still parses, with something of its graph replaced."""
    new = onnx.ModelProto()
    new.CopyFrom(model)
    nodes, tensors = new.graph.node, new.graph.initializer
    node = rng.choice(nodes)
    kind = rng.randrange(8)
    names = [*(n for one in nodes for n in (*one.input, *one.output)), "x", "", "nothing"]
    if kind == 0 and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(names)
    elif kind == 1 and node.output:
        node.output[rng.randrange(len(node.output))] = rng.choice(names)
    elif kind == 2:
        node.op_type = rng.choice(("Expand", "Loop", "Tile", "Reshape", "Conv", "Slice", "Pad", "Resize", "Nothing"))
    elif kind == 3 and node.attribute:
        attribute = rng.choice(node.attribute)
        attribute.i = rng.choice((-1, 0, 3, 1 << 40))
        attribute.ints[:] = [rng.choice((-1, 0, 1, 2, 1 << 40)) for _ in attribute.ints]
    elif kind == 4 and tensors:
        tensor = rng.choice(tensors)
        tensor.dims[:] = [rng.choice((-1, 0, 1, 3, 1 << 33)) for _ in range(rng.randrange(4))]
    elif kind == 5 and tensors:
        tensor = rng.choice(tensors)
        tensor.data_type = rng.randrange(24)
    elif kind == 6:
        new.graph.input[0].type.tensor_type.shape.dim[0].dim_value = rng.choice((-1, 0, 2, 1 << 40))
    else:
        new.opset_import[0].version = rng.choice((0, 7, 8, 9, 11, 13, 18, 22, 28, 29, 1 << 40))
    return new
