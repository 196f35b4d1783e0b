"""Quantised models: contractions of 8-bit integers, movement on 8 bits, and what stays as it is."""

import numpy as np
import pytest

from tests.passes.graphs import count, given, graph, weight
from whet.ir.graph import Graph, Value, constant
from whet.ir.types import NUMPY_DTYPES
from whet.ops.cast import Cast
from whet.ops.contract import Convolution, MatMul
from whet.ops.elementwise import Relu
from whet.ops.movement import Concat, Pad, Transpose, reshape, slice_axis, transpose
from whet.ops.quantize import Dequantize, Quantize
from whet.ops.window import Pool
from whet.passes.check import same_meaning
from whet.passes.qdq import quantized_arithmetic
from whet.passes.recognise import Numbers, looking_at

Q = given("q", 2, 5, 6, 4, dtype="uint8")
SCALE, ZERO = weight("scale"), weight("zero", dtype="uint8")


class Weights:
    """Weights of a quantised model: small scales, zero points as given, any integers."""

    def __init__(self, **zeros: int) -> None:
        self.zeros = zeros

    def reader(self, g: Graph):
        types = {v.op.name: v.op.type for v in g.values if type(v.op).__name__ == "Weight"}

        def read(name: str) -> np.ndarray:
            kind = types[name]
            shape = tuple(int(s) for s in kind.shape)  # type: ignore[call-overload]
            rng = np.random.default_rng(list(name.encode()))
            if "zero" in name:
                return np.full(shape, self.zeros.get(name, 0), NUMPY_DTYPES[kind.dtype])
            if "scale" in name:
                return rng.uniform(0.01, 0.03, shape).astype(np.float32)
            if kind.dtype == "float32":
                return rng.standard_normal(shape).astype(np.float32)
            low = -100 if kind.dtype == "int8" else 0
            return rng.integers(low, 101, shape).astype(NUMPY_DTYPES[kind.dtype])

        return read


def run(before: Graph, **zeros: int) -> Graph:
    """The graph after the pass, which must mean the same on integers of the whole range."""
    read = Weights(**zeros).reader(before)
    numbers = Numbers(read)
    with looking_at(numbers):
        after = quantized_arithmetic(before)
    rng = np.random.default_rng(1)
    feed = {
        v: rng.integers(0, 256, [int(s) for s in v.shape]).astype(NUMPY_DTYPES[v.dtype])  # type: ignore[call-overload]
        if "int" in v.dtype
        else rng.standard_normal([int(s) for s in v.shape]).astype(np.float32)  # type: ignore[call-overload]
        for v in before.inputs
    }
    assert same_meaning(before, after, read, [feed]) == 1
    return after


def contractions(g: Graph) -> list[tuple[str | None, ...]]:
    """The input dtypes and the accumulator of each contraction."""
    found = [v for v in g.values if isinstance(v.op, Convolution | MatMul) and not v.is_static]
    return [(*(i.dtype for i in v.inputs), v.op.accumulate) for v in found]


def dequantized_weight(*shape: int, axis: int | None = 0) -> Value:
    """int8, with a scale and a zero point for each output."""
    each = [shape[i] if i == axis else 1 for i in range(len(shape))] if axis is not None else []
    w = weight("w", *shape, dtype="int8")
    return Dequantize("float32")(w, weight("wscale", *each), weight("wzero", *each, dtype="int8"))


def convolution(x: Value, w: Value, pad: int = 1, groups: int = 1) -> Value:
    return Convolution((1, 1), (1, 1), (pad, pad), (pad, pad), groups)(x, w)


def dequantized(q: Value = Q, scale: Value = SCALE, zero: Value | None = ZERO) -> Value:
    return Dequantize("float32")(q, scale, zero)


def shifted(q: Value, zero: Value) -> Value:
    return Cast("int32")(q) - Cast("int32")(zero)


INTEGER = {
    "convolution": convolution(dequantized(), dequantized_weight(8, 3, 3, 4)),
    "convolution without padding": convolution(
        dequantized(), dequantized_weight(8, 3, 3, 4), pad=0
    ),
    "channels by themselves": convolution(dequantized(), dequantized_weight(4, 3, 3, 1), groups=4),
    "groups": convolution(dequantized(), dequantized_weight(8, 3, 3, 2), groups=2),
    "one scale": convolution(dequantized(), dequantized_weight(8, 3, 3, 4, axis=None)),
    "no zero point": convolution(dequantized(zero=None), dequantized_weight(8, 3, 3, 4)),
    "a weight that is moved when it is dequantised": convolution(
        dequantized(), transpose(dequantized_weight(8, 4, 3, 3), 0, 2, 3, 1)
    ),
    "a weight that is reshaped when it is dequantised": convolution(
        dequantized(), reshape(dequantized_weight(4, 1, 3, 3), 4, 3, 3, 1), groups=4
    ),
    "a matrix that is transposed when it is dequantised": MatMul()(
        dequantized(), transpose(dequantized_weight(7, 4), 1, 0)
    ),
    "matrix product": MatMul()(dequantized(), dequantized_weight(4, 7, axis=1)),
    "behind relu and quantised again": Quantize("uint8")(
        Relu()(convolution(dequantized(), dequantized_weight(8, 3, 3, 4)) + weight("b", 8)),
        weight("yscale"),
        weight("yzero", dtype="uint8"),
    ),
    "integers as QLinearConv reads them": convolution(
        shifted(Q, ZERO),
        shifted(weight("w", 8, 3, 3, 4, dtype="int8"), weight("wzero", dtype="int8")),
    ),
    "integers as MatMulInteger reads them": MatMul()(
        shifted(Q, ZERO), shifted(weight("w", 4, 7, dtype="int8"), weight("wzero", 7, dtype="int8"))
    ),
    "rows with zero points of their own": MatMul()(
        shifted(Q, weight("rowzero", 6, 1, dtype="uint8")),
        Cast("int32")(weight("w", 4, 7, dtype="int8")),
    ),
}


PADDED = {
    "convolution",
    "channels by themselves",
    "a weight that is moved when it is dequantised",
    "a weight that is reshaped when it is dequantised",
    "groups",
    "one scale",
    "behind relu and quantised again",
    "integers as QLinearConv reads them",
}
"""Where a zero point other than 0 has to stand around the input."""


@pytest.mark.parametrize("zero", [0, 3, 128])
@pytest.mark.parametrize("name", INTEGER)
def test_multiplies_integers(name, zero):
    after = run(graph(INTEGER[name]), zero=zero, rowzero=zero)
    assert contractions(after) == [("uint8", "int8", "int32")]
    assert count(after, Pad) == (zero != 0 and name in PADDED)


STAYS = {
    "float weights": convolution(dequantized(), weight("v", 8, 3, 3, 4)),
    "float input": convolution(given("x", 2, 5, 6, 4), dequantized_weight(8, 3, 3, 4)),
    "a scale for each input channel": convolution(
        dequantized(scale=weight("cscale", 4), zero=None), dequantized_weight(8, 3, 3, 4)
    ),
    "a weight's scale along what is summed": MatMul()(
        dequantized(), dequantized_weight(4, 7, axis=0)
    ),
    "sixteen bits": MatMul()(
        dequantized(given("s", 3, 4, dtype="int16"), zero=None), dequantized_weight(4, 7, axis=1)
    ),
    "a zero point for each number that is summed": MatMul()(
        shifted(Q, weight("kzero", 4, dtype="uint8")),
        Cast("int32")(weight("w", 4, 4, dtype="int8")),
    ),
    "such zero points, and one of the weight": MatMul()(
        shifted(Q, weight("kzero", 4, dtype="uint8")),
        shifted(weight("w", 4, 4, dtype="int8"), constant(3, "int8")),
    ),
    "zero points of more than 8 bits": MatMul()(
        Cast("int32")(Q),
        Cast("int32")(weight("w", 4, 7, dtype="int8"))
        - constant([[70000], [1], [2], [3]], "int32"),
    ),
    "a zero point that stretches": MatMul()(
        shifted(given("q", 3, 1, dtype="uint8"), weight("rowzero", 3, 4, dtype="uint8")),
        Cast("int32")(weight("w", 4, 7, dtype="int8")),
    ),
    "one number, to which its scale adds an axis": slice_axis(
        Dequantize("float32")(given("s", dtype="uint8"), weight("oscale", 1)), 0, 0, 1
    ),
    "integers that are wide": MatMul()(
        given("i", 3, 4, dtype="int32"), Cast("int32")(weight("w", 4, 7, dtype="int8"))
    ),
}


@pytest.mark.parametrize("name", STAYS)
def test_stays(name):
    before = graph(STAYS[name])
    assert run(before, kzero=3) is before


@pytest.mark.parametrize("name", ["convolution", "groups", "integers as QLinearConv reads them"])
def test_a_weight_with_a_zero_point_has_sixteen_bits(name):
    after = run(graph(INTEGER[name]), wzero=1)
    assert contractions(after) == [("uint8", "int16", "int32")]


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("zero", [0, 1, 100])
@pytest.mark.parametrize("x_zero", [0, 7])
def test_a_matrix_with_a_zero_point_is_signed(x_zero, zero, dtype):
    for shape in ((), (7,)):
        w = shifted(weight("w", 4, 7, dtype=dtype), weight("wzero", *shape, dtype=dtype))
        for row in (ZERO, weight("rowzero", 6, 1, dtype="uint8")):
            before = graph(MatMul()(shifted(Q, row), w))
            after = run(before, zero=x_zero, rowzero=x_zero, wzero=zero)
            assert set(contractions(after)) == {("uint8", "int8", "int32")}


def test_zero_points_that_nobody_may_look_at():
    unknown = quantized_arithmetic(graph(INTEGER["convolution"]))
    assert contractions(unknown) == [("uint8", "int16", "int32")]
    plain = graph(
        convolution(
            dequantized(), Dequantize("float32")(weight("w", 8, 3, 3, 4, dtype="int8"), SCALE)
        )
    )
    assert contractions(quantized_arithmetic(plain)) == [("uint8", "int8", "int32")]
    assert count(quantized_arithmetic(plain), Pad) == 1, "the zero point may be another number"


def test_zero_points_are_frozen():
    numbers = Numbers(Weights().reader(graph(INTEGER["convolution"])))
    with looking_at(numbers):
        quantized_arithmetic(graph(INTEGER["convolution"]))
    assert numbers.frozen == {"zero", "wzero"}


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_there_and_back_is_nothing(dtype):
    """For every number, and scales that are no powers of two."""
    q = given("all", 256, dtype=dtype)
    zero = weight("zero", dtype=dtype)
    back = Quantize(dtype)(dequantized(q, zero=zero), SCALE, zero)
    assert quantized_arithmetic(graph(back)).outputs == (q,)
    every = np.arange(256).astype(np.uint8).view(dtype)
    for scale in np.float32([1e-20, 0.003, 0.1, 1 / 3, 7.7, 1e20]):
        weights = {"scale": scale, "zero": np.array(5, dtype)}
        assert same_meaning(graph(back), graph(q), weights.__getitem__, [{q: every}])


def test_there_and_back_by_another_scale_stays():
    before = graph(Quantize("uint8")(dequantized(), weight("other"), ZERO))
    assert run(before) is before


def test_dequantised_after_movement():
    moved = transpose(reshape(slice_axis(dequantized(), 1, 1, 3), 2, 18, 4), 0, 2, 1)
    after = run(graph(moved))
    assert isinstance(after.outputs[0].op, Dequantize)
    joined = run(
        graph(Concat(1)(dequantized(), dequantized(given("r", 2, 1, 6, 4, dtype="uint8"))))
    )
    assert isinstance(joined.outputs[0].op, Dequantize)
    pool = Pool("max", (3, 3), (2, 2), (1, 1), (1, 1), (3, 3))
    pooled = run(graph(pool(dequantized())))
    assert isinstance(pooled.outputs[0].op, Dequantize)


def test_dequantised_before_what_depends_on_the_scale():
    per_channel = transpose(dequantized(scale=weight("cscale", 4), zero=None), 0, 3, 1, 2)
    joined = Concat(1)(dequantized(), dequantized(scale=weight("other")))
    outside = Pool("max", (1, 1), (3, 3), (1, 1), (1, 0), (2, 2))(dequantized())
    for value in (per_channel, joined, outside):
        assert run(graph(value)) is graph(value) or not isinstance(
            run(graph(value)).outputs[0].op, Dequantize
        )


def test_quantised_before_movement():
    parts = Concat(1)(given("x", 2, 3), given("y", 2, 5))
    after = run(graph(Quantize("uint8")(transpose(parts, 1, 0), SCALE, ZERO)))
    moved = [v for v in after.values if isinstance(v.op, Transpose | Concat)]
    assert [v.dtype for v in moved] == ["uint8", "uint8"]
    shared = graph(Quantize("uint8")(parts, SCALE, ZERO), parts)
    assert run(shared) is shared


def test_constants_as_zero_points():
    w = shifted(weight("w", 8, 3, 3, 4, dtype="int8"), constant(0, "int8"))
    after = run(graph(convolution(shifted(Q, constant(128, "uint8")), w)))
    assert contractions(after) == [("uint8", "int8", "int32")]
