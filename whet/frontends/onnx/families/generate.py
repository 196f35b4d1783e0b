"""ONNX operators that make tensors from little or nothing: constants, ranges, windows."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from whet.errors import InvalidModel, ShapeError
from whet.frontends.onnx.families.dynamic import dynamic_range
from whet.frontends.onnx.families.movement import one_size, zero
from whet.frontends.onnx.model import DTYPES, Tensor
from whet.frontends.onnx.registry import Refused, onnx_op
from whet.ir.contents import MOST_CONTENTS
from whet.ir.graph import Value, constant
from whet.ir.sizes import Expr, Size, ceil_divide, maximum, product
from whet.ir.types import FLOATS
from whet.ops import elementwise as ew
from whet.ops import movement as mv
from whet.ops.index import number, positions

if TYPE_CHECKING:
    from whet.frontends.onnx.importer import Reading


@onnx_op
def Constant(
    *,
    value: Tensor | None = None,
    sparse_value: Tensor | None = None,
    value_float: float | None = None,
    value_floats: Sequence[float] | None = None,
    value_int: int | None = None,
    value_ints: Sequence[int] | None = None,
    value_string: str | None = None,
    value_strings: Sequence[str] | None = None,
    node: Reading,
) -> Value:
    tensor = value or sparse_value
    if tensor is not None:
        return _stored(tensor, node)
    forms: list[tuple[Any, str]] = [
        (value_float, "float32"),
        (value_floats, "float32"),
        (value_int, "int64"),
        (value_ints, "int64"),
        (value_string, "string"),
        (value_strings, "string"),
    ]
    for data, dtype in forms:
        if data is not None:
            return constant(data, dtype)
    raise InvalidModel("a Constant has none of the attributes that could give its value")


def _stored(tensor: Tensor, node: Reading) -> Value:
    """A large constant is a weight like any initializer, under the name of the node's output."""
    if product(tensor.type.shape) > MOST_CONTENTS:  # type: ignore[operator]
        name = node.scope.prefix + node.node.outputs[0]
        return node.importer.weight(name, tensor)
    return constant(tensor.read())


@onnx_op
def ConstantOfShape(shape: Value, *, value: Tensor | None = None, node: Reading) -> Value:
    sizes = node.counts(shape, "the shape of ConstantOfShape")
    fill = np.zeros(1, np.float32) if value is None else value.read()
    return mv.broadcast_to(constant(fill.reshape(())), *sizes)


@onnx_op
def Range(start: Value, limit: Value, delta: Value, *, stash_type: int = 1, node: Reading) -> Value:
    dtype = start.dtype
    if any(node.known(v) is None for v in (start, limit, delta)):
        return dynamic_range(start, limit, delta, node)
    first, last, step = (node.number(v, "the bounds of Range") for v in (start, limit, delta))
    if isinstance(step, Expr) or step == 0:
        raise Refused(f"the step {step} of Range must be a number other than 0")
    if dtype in FLOATS:
        count: Size = max(math.ceil((float(last) - float(first)) / float(step)), 0)
    else:
        count = maximum(ceil_divide((last - first) * (1 if step > 0 else -1), abs(step)), 0)
    wide = element_type(stash_type, dtype) if dtype in ew.NARROW else dtype
    places = positions(count, 1, 0, wide) * ew.cast_to(delta, wide) + ew.cast_to(start, wide)
    return known(ew.cast_to(places, dtype))


def known(value: Value) -> Value:
    """A constant, where the elements can be told now and are few."""
    return value if value.contents is None or _is_symbolic(value) else constant(value.contents)


def _is_symbolic(value: Value) -> bool:
    return value.contents is not None and value.contents.dtype == object


@onnx_op
def EyeLike(x: Value, *, dtype: int | None = None, k: int = 0) -> Value:
    if x.rank != 2:
        raise ShapeError(f"EyeLike needs a matrix, got {x.type}")
    rows, columns = positions(x.shape[0], 2, 0), positions(x.shape[1], 2, 1)
    return ew.Cast(element_type(dtype, x.dtype))(ew.Equal()(rows + k, columns))


def element_type(number: int | None, default: str) -> str:
    """The dtype that an attribute names, or the default where it is absent."""
    if number is None:
        return default
    if number not in DTYPES:
        raise InvalidModel(f"there is no element type {number}")
    return DTYPES[number]


@onnx_op
def OneHot(indices: Value, depth: Value, values: Value, *, axis: int = -1, node: Reading) -> Value:
    depth = ew.cast_to(depth, "int64")
    size = one_size(node, depth, "the depth of OneHot")
    axis = mv.normalize_axis(axis, indices.rank + 1)
    at = ew.Cast("int64")(indices)
    at = mv.unsqueeze(ew.Where()(ew.Less()(at, 0), at + number(size, "int64"), at), axis)
    hot = ew.Equal()(at, positions(size, indices.rank + 1, axis))
    off, on = (mv.reshape(part) for part in mv.split(values, (1, 1), 0))
    return ew.Where()(hot, on, off)


@onnx_op
def Trilu(x: Value, k: Value | None = None, *, upper: int = 1) -> Value:
    diagonal = positions(x.shape[-1], 2, 1) - positions(x.shape[-2], 2, 0)
    place = constant(0, "int64") if k is None else mv.reshape(ew.Cast("int64")(k))
    sides = (place, diagonal) if upper else (diagonal, place)
    return ew.Where()(ew.LessOrEqual()(*sides), x, zero(x))


# The sums of cosines that make the windows (Harris 1978), from the constant term up.
HANN = (0.5, -0.5)
HAMMING = (25 / 46, -21 / 46)
BLACKMAN = (0.42, -0.5, 0.08)


@onnx_op
def HannWindow(size: Value, *, output_datatype: int = 1, periodic: int = 1, node: Reading) -> Value:
    return _window(HANN, size, output_datatype, periodic, node)


@onnx_op
def HammingWindow(
    size: Value, *, output_datatype: int = 1, periodic: int = 1, node: Reading
) -> Value:
    return _window(HAMMING, size, output_datatype, periodic, node)


@onnx_op
def BlackmanWindow(
    size: Value, *, output_datatype: int = 1, periodic: int = 1, node: Reading
) -> Value:
    return _window(BLACKMAN, size, output_datatype, periodic, node)


def _window(
    terms: Sequence[float], size: Value, output: int, periodic: int, node: Reading
) -> Value:
    count = one_size(node, size, "the size of the window")
    if count == 1 and not periodic:
        return constant([1.0], element_type(output, "float32"))
    period = number(maximum(count if periodic else count - 1, 1), "float64")
    angle = positions(count, 1, 0, "float64") * (2 * math.pi) / period
    waves = (ew.Cos()(angle * float(i)) * term for i, term in enumerate(terms))
    return known(ew.Cast(element_type(output, "float32"))(functools.reduce(ew.Add(), waves)))


@onnx_op
def MelWeightMatrix(
    bins: Value,
    dft_length: Value,
    sample_rate: Value,
    lower: Value,
    upper: Value,
    *,
    output_datatype: int = 1,
    node: Reading,
) -> Value:
    inputs = (bins, dft_length, sample_rate, lower, upper)
    matrix = mel_weights(*(node.number(i, "the inputs of MelWeightMatrix") for i in inputs))
    return constant(matrix, element_type(output_datatype, "float32"))


def mel_weights(bins: int, dft_length: int, rate: int, lower: float, upper: float) -> np.ndarray:
    """Triangles evenly spaced on the mel scale: [dft_length // 2 + 1, bins] (ONNX's formula)."""
    low, high = (2595 * math.log10(1 + edge / 700) for edge in (lower, upper))
    mels = np.arange(bins + 2) * ((high - low) / (bins + 2)) + low
    hertz = 700 * (10 ** (mels / 2595) - 1)
    edges = ((dft_length + 1) * hertz // rate).astype(np.int64)
    begin, centre, end = edges[:-2], edges[1:-1], edges[2:]
    line = np.arange(dft_length // 2 + 1)[:, None]
    rising = (line - begin) / np.maximum(centre - begin, 1)
    falling = (end - line) / np.maximum(end - centre, 1)
    peak = (line == centre) & (begin == centre)
    up = (begin <= line) & (line <= centre) & (begin < centre)
    down = (centre <= line) & (line < end)
    return np.select([down, up, peak], [falling, rising, 1.0], 0.0)
