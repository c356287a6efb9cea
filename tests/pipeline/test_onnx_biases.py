"""INT32 biases: where they stand for the same, and where a bias is to stay as it is."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.export.onnx_biases import quantize_biases

#: What a step of the input and of each output channel's weights stands for.
STEP, STEPS = 0.02, np.array([0.01, 0.003, 0.05], "f4")
BIAS = np.array([0.5, -0.25, 1.0], "f4")


def model(kind: str, bias: np.ndarray = BIAS, *, integer: bool = True) -> onnx.ModelProto:
    """A layer of four inputs and three outputs: Conv, Gemm, or MatMul and Add."""
    rng = np.random.default_rng(0)
    shape = {"Conv": (1, 4, 2, 2), "Gemm": (1, 4), "MatMul": (1, 2, 4)}[kind]
    result = {"Conv": (1, 3, 2, 2), "Gemm": (1, 3), "MatMul": (1, 2, 3)}[kind]
    weights = rng.integers(-127, 128, (3, 4, 1, 1) if kind == "Conv" else (3, 4)).astype("i1")
    tensors = {"w": weights, "steps": STEPS, "step": np.float32(STEP), "zero": np.uint8(128)}
    tensors["zeros"] = np.zeros(3, "i1")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "step", "zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "steps", "zeros"], ["wd"], axis=0),
    ]
    given = "xd" if integer else "x"
    if kind == "MatMul":
        nodes += [
            helper.make_node("Transpose", ["wd"], ["wt"], perm=[1, 0]),
            helper.make_node("MatMul", [given, "wt"], ["product"]),
            helper.make_node("Add", ["bias", "product"], ["y"]),
        ]
    else:
        options = {"transB": 1} if kind == "Gemm" else {}
        nodes.append(helper.make_node(kind, [given, "wd", "bias"], ["y"], **options))
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, result)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in {**tensors, "bias": bias}.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def output(model: onnx.ModelProto) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape
    x = np.random.default_rng(1).standard_normal(shape).astype("f4")
    return np.asarray(session.run(None, {"x": x})[0])


def runs(model: onnx.ModelProto, path) -> set[str]:
    """The operators that ONNX Runtime makes of it."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return {node.op_type for node in onnx.load(path).graph.node}


@pytest.mark.parametrize("kind", ["Conv", "Gemm", "MatMul"])
def test_a_bias_is_counted_in_units_of_its_sums(kind):
    before, after = model(kind), model(kind)
    assert quantize_biases(after) == 1
    onnx.checker.check_model(after, full_check=True)
    (bias,) = [t for t in after.graph.initializer if t.data_type == TensorProto.INT32]
    expected = np.round(BIAS / (np.float32(STEP) * STEPS))
    assert numpy_helper.to_array(bias).tolist() == expected.tolist()
    assert "bias" not in [tensor.name for tensor in after.graph.initializer]
    np.testing.assert_allclose(output(after), output(before), atol=STEP * STEPS.max())


@pytest.mark.parametrize("kind", ["Gemm", "MatMul"])
def test_a_linear_layer_that_gives_float_computes_in_integers(kind, tmp_path):
    layer = model(kind)
    assert "QGemm" not in runs(layer, tmp_path / "before.onnx")
    quantize_biases(layer)
    assert "QGemm" in runs(layer, tmp_path / "after.onnx")


def test_a_bias_that_several_layers_read_serves_each_in_its_own_unit():
    twice = model("Gemm")
    weights = helper.make_node("DequantizeLinear", ["w", "other"], ["wo"], axis=0)
    layer = helper.make_node("Gemm", ["xd", "wo", "bias"], ["z"], transB=1)
    twice.graph.node.extend([weights, layer])
    twice.graph.initializer.append(numpy_helper.from_array(2 * STEPS, "other"))
    twice.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, (1, 3)))
    assert quantize_biases(twice) == 2
    onnx.checker.check_model(twice, full_check=True)
    integers = [t for t in twice.graph.initializer if t.data_type == TensorProto.INT32]
    first, second = (numpy_helper.to_array(tensor).astype(float) for tensor in integers)
    np.testing.assert_allclose(first, 2 * second, atol=2)


@pytest.mark.parametrize(
    "layer",
    [
        pytest.param(model("Gemm", integer=False), id="a float input"),
        pytest.param(model("Gemm", BIAS * 1e9), id="too large for INT32"),
        pytest.param(model("Gemm", np.full(3, np.nan, "f4")), id="not a number"),
        pytest.param(model("MatMul", np.float32(2)), id="a number for all channels"),
    ],
)
def test_other_biases_stay(layer):
    before = layer.SerializeToString()
    assert quantize_biases(layer) == 0
    assert layer.SerializeToString() == before


def test_what_a_branch_alone_reads_stays_and_its_traces_go():
    """``If`` as PyTorch's ``cond`` becomes it: bodies read the weights of the graph around them."""
    from pipeline.export.onnx import _strip_traces

    choosing = model("Gemm")
    value = helper.make_tensor_value_info("t", TensorProto.FLOAT, (1, 3))
    choosing.graph.initializer.append(numpy_helper.from_array(np.full((1, 3), 7, "f4"), "deep"))
    within = helper.make_node("Identity", ["deep"], ["t"], doc_string="/home/someone/net.py")
    within.metadata_props.add(key="trace", value="/home/someone/net.py")
    inner = helper.make_graph([within], "inner", [], [value])
    true = helper.make_tensor("true", TensorProto.BOOL, (), [True])
    choosing.graph.initializer.append(true)
    outer = helper.make_graph(
        [helper.make_node("If", ["true"], ["t"], then_branch=inner, else_branch=inner)],
        "outer",
        [],
        [value],
    )
    choosing.graph.node.append(
        helper.make_node("If", ["true"], ["z"], then_branch=outer, else_branch=inner)
    )
    choosing.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, (1, 3)))
    function = helper.make_function(
        "own", "f", ["a"], ["b"], [helper.make_node("Identity", ["a"], ["b"])], []
    )
    function.node[0].metadata_props.add(key="trace", value="/home/someone/net.py")
    choosing.functions.append(function)
    assert quantize_biases(choosing) == 1
    _strip_traces(choosing)
    names = {tensor.name for tensor in choosing.graph.initializer}
    assert names >= {"deep", "true"} and "bias" not in names
    assert b"someone" not in choosing.SerializeToString()
    del choosing.functions[:]
    session = ort.InferenceSession(choosing.SerializeToString())
    assert session.run(["z"], {"x": np.zeros((1, 4), "f4")})[0].tolist() == [[7, 7, 7]]
