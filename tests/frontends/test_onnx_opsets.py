"""The forms that operators had in older opsets, and named sizes, against ONNX Runtime.

A row is an opset, a node in the syntax of onnx.parser, and its inputs: small letters are fed,
capital letters are initializers.
"""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
import onnx.helper
import onnx.parser
import pytest

from tests.frontends.written import assert_same, peer, run
from whet.frontends.onnx import from_onnx

pytest.importorskip("onnxruntime")

SEED = secrets.randbits(32)


def floats(*shape: int) -> np.ndarray:
    rng = np.random.default_rng([SEED, *shape])
    return rng.uniform(-2, 2, shape).astype(np.float32)


def whole(*shape: int, high: int = 9, dtype: Any = np.int64) -> np.ndarray:
    rng = np.random.default_rng([SEED, *shape])
    return rng.integers(-high, high + 1, shape).astype(dtype)


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


X, ODD = floats(3, 4, 5), np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e38, -3.0], np.float32)
SOME = np.array([[True, False, True], [False, True, True]])
ROWS: list[tuple[int, str, dict[str, Any]]] = [
    # Attributes that later became inputs.
    (7, "y = Clip <min = -0.5> (x)", {"x": ODD}),
    (7, "y = Clip <min = -0.5, max = 0.5> (x)", {"x": X}),
    (11, "y = Clip (x, A)", {"x": X, "A": np.float32(-1)}),
    (11, 'y = Clip (x, "", A)', {"x": X, "A": np.float32(1)}),
    (12, "y = Clip (x, A, B)", {"x": whole(9), "A": np.int64(-2), "B": np.int64(3)}),
    (7, "y = Slice <starts = [1, -3], ends = [9, -1], axes = [0, 2]> (x)", {"x": X}),
    (7, "y = Slice <starts = [1, 0], ends = [2147483647, 3]> (x)", {"x": X}),
    (10, "y = Slice (x, A, B)", {"x": X, "A": i64(0, 1), "B": i64(2, 99)}),
    (
        11,
        "y = Slice (x, A, B, C, D)",
        {"x": X, "A": i64(-1, 9), "B": i64(-99, 0), "C": i64(2, 1), "D": i64(-2, -1)},
    ),
    (
        13,
        "y = Slice (x, A, B, C, D)",
        {"x": X, "A": i64(3), "B": i64(-(2**63)), "C": i64(-1), "D": i64(-1)},
    ),
    (13, "y = Slice (x, A, B, C, D)", {"x": X, "A": i64(4), "B": i64(1), "C": i64(1), "D": i64(2)}),
    (13, "y = Slice (x, A, B, C)", {"x": X, "A": i64(-99), "B": i64(2**63 - 1), "C": i64(-2)}),
    (7, "y = Pad <pads = [0, 1, 0, 2, 0, 3], value = 1.5> (x)", {"x": X}),
    (7, "y = Pad <pads = [0, -1, 0, 2, 0, -1]> (x)", {"x": X}),
    (7, 'y = Pad <pads = [1, 0, 2, 1, 3, 4], mode = "reflect"> (x)', {"x": X}),
    (11, 'y = Pad <mode = "edge"> (x, A)', {"x": X, "A": i64(1, 0, 2, 1, 3, 7)}),
    (13, "y = Pad (x, A, B)", {"x": X, "A": i64(1, 0, 2, 1, 3, 0), "B": np.float32(2)}),
    (
        18,
        "y = Pad (x, A, B, C)",
        {"x": X, "A": i64(1, 2, -1, 3), "B": np.float32(2), "C": i64(-1, 0)},
    ),
    (19, 'y = Pad <mode = "wrap"> (x, A)', {"x": X, "A": i64(3, 0, 2, 1, 3, 4)}),
    (7, "y = Squeeze <axes = [0, 3]> (x)", {"x": floats(1, 4, 5, 1)}),
    (11, "y = Squeeze <axes = [-1]> (x)", {"x": floats(1, 4, 5, 1)}),
    (7, "y = Squeeze (x)", {"x": floats(1, 4, 1)}),
    (13, "y = Squeeze (x, A)", {"x": floats(1, 4, 1), "A": i64(0, -1)}),
    (7, "y = Unsqueeze <axes = [0, 4]> (x)", {"x": X}),
    (11, "y = Unsqueeze <axes = [-1, 1]> (x)", {"x": X}),
    (13, "y = Unsqueeze (x, A)", {"x": X, "A": i64(-5, 2)}),
    (7, "y, z = Split <axis = 1> (x)", {"x": X}),
    (7, "y, z = Split <axis = 2, split = [2, 3]> (x)", {"x": X}),
    (13, "y, z = Split <axis = -1> (x, A)", {"x": X, "A": i64(1, 4)}),
    (18, "y, z, w = Split <axis = 2, num_outputs = 3> (x)", {"x": X}),
    (7, "y = Dropout (x)", {"x": X}),
    (10, "y = Dropout <ratio = 0.3> (x)", {"x": X}),
    (12, "y, m = Dropout (x, A)", {"x": X, "A": np.float32(0.3)}),
    (13, "y = Dropout (x, A, B)", {"x": X, "A": np.float32(0), "B": np.bool_(True)}),
    *(
        (o, f"y = {op} (x)", {"x": X})
        for o in (7, 11, 13)
        for op in ("ReduceSum", "ReduceMean", "ReduceL2")
    ),
    (7, "y = ReduceSum <axes = [0, 2], keepdims = 0> (x)", {"x": X}),
    (11, "y = ReduceMax <axes = [-1]> (x)", {"x": whole(3, 4)}),
    (12, "y = ReduceMin <axes = [1]> (x)", {"x": whole(3, 4, dtype=np.int8)}),
    (11, "y = ReduceLogSumExp <axes = [1]> (x)", {"x": 90 * X}),
    (11, "y = ReduceLogSum <axes = [1]> (x)", {"x": abs(X)}),
    (11, "y = ReduceSumSquare <axes = [1], keepdims = 0> (x)", {"x": X}),
    (11, "y = ReduceL1 <axes = [1]> (x)", {"x": whole(3, 4, dtype=np.int32)}),
    (11, "y = ReduceProd <axes = [0, -1]> (x)", {"x": X}),
    (13, "y = ReduceSum <noop_with_empty_axes = 1> (x)", {"x": X}),
    (13, "y = ReduceSum <keepdims = 0> (x, A)", {"x": X, "A": i64(-2)}),
    (18, "y = ReduceMean <keepdims = 0> (x, A)", {"x": X, "A": i64(2, 0)}),
    (18, "y = ReduceMean (x)", {"x": whole(3, 4, dtype=np.int32)}),
    (20, "y = ReduceMax (x, A)", {"x": SOME, "A": i64(1)}),
    (7, "y = ArgMax <axis = 1, keepdims = 0> (x)", {"x": X}),
    (
        12,
        "y = ArgMin <axis = -1, select_last_index = 1> (x)",
        {"x": whole(6, 9, high=2, dtype=np.int32)},
    ),
    (
        12,
        "y = ArgMax <axis = 0, select_last_index = 1> (x)",
        {"x": whole(6, 9, high=2, dtype=np.int32)},
    ),
    # What the ONNX node cases leave out.
    (13, "y = Reshape (x, A)", {"x": X, "A": i64(0, -1)}),
    (13, "y = Reshape (x, A)", {"x": X, "A": i64(2, 0, -1)[[1, 2]]}),
    (14, "y = Reshape <allowzero = 1> (x, A)", {"x": floats(0, 3), "A": i64(3, 0)}),
    (9, "y = Flatten <axis = 0> (x)", {"x": X}),
    (13, "y = Flatten <axis = -1> (x)", {"x": X}),
    (9, "y = Flatten <axis = 3> (x)", {"x": X}),
    (8, "y = Expand (x, A)", {"x": floats(3, 1), "A": i64(2, 1, 4)}),
    (13, "y = Tile (x, A)", {"x": X, "A": i64(1, 2, 3)}),
    (15, "y = Shape <start = 1, end = -1> (x)", {"x": X}),
    (13, "y = Size (x)", {"x": X}),
    (
        9,
        "y = Scatter <axis = 1> (x, a, b)",
        {"x": X, "a": np.array([[[2, 0], [1, 3]]]), "b": floats(1, 2, 2)},
    ),
    (
        18,
        'y = ScatterElements <axis = -1, reduction = "min"> (x, a, b)',
        {"x": X, "a": whole(3, 4, 2, high=4), "b": floats(3, 4, 2)},
    ),
    (11, "y = GatherND (x, A)", {"x": X, "A": np.array([[-1, 0], [1, -2]])}),
    (12, "y = GatherND <batch_dims = 1> (x, a)", {"x": X, "a": whole(3, 2, 1, high=3)}),
    (
        18,
        'y = ScatterND <reduction = "max"> (x, a, b)',
        {"x": X, "a": np.array([[1], [1]]), "b": floats(2, 4, 5)},
    ),
    (13, "y = Gather <axis = -2> (x, a)", {"x": X, "a": whole(2, 3, high=3, dtype=np.int32)}),
    (10, "y = ReverseSequence <batch_axis = 0, time_axis = 1> (x, a)", {"x": X, "a": i64(4, 1, 2)}),
    (13, 'y = DepthToSpace <blocksize = 2, mode = "CRD"> (x)', {"x": floats(2, 8, 3, 2)}),
    (7, "y = DepthToSpace <blocksize = 2> (x)", {"x": floats(2, 8, 3, 2)}),
    (13, "y = SpaceToDepth <blocksize = 2> (x)", {"x": floats(2, 3, 4, 6)}),
    (
        18,
        "y = Col2Im <strides = [2, 1], pads = [1, 0, 1, 0], dilations = [1, 2]> (x, A, B)",
        {"x": floats(2, 12, 9), "A": i64(6, 5), "B": i64(3, 2)},
    ),
    (18, "y = CenterCropPad <axes = [1, 2]> (x, A)", {"x": X, "A": i64(7, 2)}),
    (14, "y = Trilu <upper = 0> (x, a)", {"x": X, "a": np.int64(-1)}),
    (14, "y = CumSum <reverse = 1, exclusive = 1> (x, A)", {"x": X, "A": np.int32(-2)}),
    (
        11,
        "y = OneHot <axis = 1> (x, A, B)",
        {"x": whole(3, 2, high=5), "A": i64(4), "B": floats(2)},
    ),
    (9, "y = EyeLike <k = -1, dtype = 7> (x)", {"x": floats(3, 5)}),
    (11, "y = Range (A, B, C)", {"A": np.int64(9), "B": np.int64(-3), "C": np.int64(-4)}),
    (11, "y = Range (A, B, C)", {"A": np.float32(0.5), "B": np.float32(3), "C": np.float32(0.7)}),
    (9, "y = ConstantOfShape <value = int32[1] {7}> (A)", {"A": i64(2, 3)}),
    (9, "y = ConstantOfShape (A)", {"A": i64(2, 0)}),
    (13, "y = Mod <fmod = 1> (x, a)", {"x": X, "a": floats(5)}),
    (13, "y = Mod (x, a)", {"x": whole(40), "a": np.where(whole(40) == 0, 3, whole(40))}),
    (14, "y = Div (x, a)", {"x": whole(40), "a": np.where(whole(40) == 0, 3, whole(40))}),
    (12, "y = Pow (x, a)", {"x": abs(X), "a": whole(5, high=3)}),
    (13, "y = Where (x, a, b)", {"x": SOME, "a": floats(2, 1), "b": floats(3)}),
    (10, "y = IsInf <detect_negative = 0> (x)", {"x": ODD}),
    (13, "y = Sign (x)", {"x": ODD}),
    (11, "y = Round (x)", {"x": np.arange(-4, 4, 0.5, np.float32)}),
    (13, "y = Max (x, a, b)", {"x": X, "a": floats(4, 1), "b": floats(5)}),
    (13, "y = Mean (x, a, b)", {"x": X, "a": floats(4, 1), "b": floats(5)}),
    (13, "y = Sum (x)", {"x": X}),
    *(
        (12, f"y = {op} (x)", {"x": 4 * X})
        for op in ("Elu", "Selu", "Celu", "Softplus", "Softsign", "HardSigmoid", "ThresholdedRelu")
    ),
    (10, "y = ThresholdedRelu <alpha = 0.3> (x)", {"x": X}),
    (9, "y = Shrink <lambd = 0.7, bias = 0.2> (x)", {"x": X}),
    (9, "y = PRelu (x, A)", {"x": X, "A": floats(4, 1)}),
    (18, "y = Mish (x)", {"x": 9 * X}),
    (14, "y = HardSwish (x)", {"x": 9 * X}),
    (20, 'y = Gelu <approximate = "tanh"> (x)', {"x": 9 * X}),
    (9, "y = Cast <to = 6> (x)", {"x": 9 * X}),
    (13, "y = Cast <to = 9> (x)", {"x": whole(9)}),
    (10, "y = QuantizeLinear (x, A, B)", {"x": 9 * X, "A": np.float32(0.1), "B": np.uint8(99)}),
    (
        13,
        "y = QuantizeLinear (x, A, B)",
        {"x": X, "A": abs(floats(4)) / 9 + 0.01, "B": whole(4, dtype=np.int8)},
    ),
    (
        13,
        "y = DequantizeLinear <axis = 0> (x, A, B)",
        {"x": whole(3, 4, dtype=np.int8), "A": floats(3), "B": whole(3, dtype=np.int8)},
    ),
    (11, "y, s, z = DynamicQuantizeLinear (x)", {"x": X}),
    (17, "y = HannWindow <periodic = 0> (A)", {"A": np.int64(9)}),
    (17, "y = BlackmanWindow (A)", {"A": np.int64(9)}),
]


def model(opset: int, node: str, given: dict[str, Any], named: bool) -> onnx.ModelProto:
    """The node as a model; `named` gives each size above 1 a name, the same for equal sizes."""
    outputs = node.partition(" =")[0].split(", ")
    signature = ", ".join(
        _typed(name, np.asarray(a), named) for name, a in given.items() if name.islower()
    )
    results = ", ".join(f"float {output}" for output in outputs)
    head = f'<ir_version: 8, opset_import: ["" : {opset}]>'
    proto = onnx.parser.parse_model(f"{head} g ({signature}) => ({results}) {{ {node} }}")
    for output in proto.graph.output:
        output.ClearField("type")
    for name, array in given.items():
        if name.isupper():
            proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return proto


def _typed(name: str, array: np.ndarray, named: bool) -> str:
    dtype = {"float32": "float"}.get(array.dtype.name, array.dtype.name)
    sizes = ", ".join(f"n{s}" if named and s > 1 else str(s) for s in array.shape)
    return f"{dtype}[{sizes}] {name}" if array.shape else f"{dtype} {name}"


@pytest.mark.parametrize("named", [False, True], ids=["numbers", "names"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}: {row[1]}")
def test_agrees_with_onnxruntime(row: tuple[int, str, dict[str, Any]], named: bool) -> None:
    opset, node, given = row
    print(f"seed {SEED}")
    fed = {name: np.asarray(a) for name, a in given.items() if name.islower()}
    got = run(from_onnx(model(opset, node, given, named)), fed)
    assert_same(got, peer(model(opset, node, given, False), fed))
