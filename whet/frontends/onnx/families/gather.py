"""ONNX operators that read or write at indices that are data."""

from __future__ import annotations

from whet.errors import InvalidModel
from whet.frontends.onnx.registry import onnx_op
from whet.ir.graph import Value
from whet.ops import elementwise as ew
from whet.ops import gather as ga
from whet.ops import movement as mv
from whet.ops.index import number, positions

KINDS = {"none": None, "add": "sum", "mul": "prod", "max": "max", "min": "min"}


@onnx_op
def Gather(data: Value, indices: Value, *, axis: int = 0) -> Value:
    return mv.Gather(mv.normalize_axis(axis, data.rank))(data, indices)


@onnx_op
def GatherElements(data: Value, indices: Value, *, axis: int = 0) -> Value:
    return ga.GatherElements(mv.normalize_axis(axis, data.rank))(data, indices)


@onnx_op
def GatherND(data: Value, indices: Value, *, batch_dims: int = 0) -> Value:
    return ga.GatherND(batch_dims)(data, indices)


@onnx_op
def Scatter(data: Value, indices: Value, updates: Value, *, axis: int = 0) -> Value:
    return ScatterElements(data, indices, updates, axis=axis)


@onnx_op
def ScatterElements(
    data: Value, indices: Value, updates: Value, *, axis: int = 0, reduction: str = "none"
) -> Value:
    axis = mv.normalize_axis(axis, data.rank)
    return ga.ScatterElements(axis, _kind(reduction))(data, indices, updates)


@onnx_op
def ScatterND(data: Value, indices: Value, updates: Value, *, reduction: str = "none") -> Value:
    return ga.ScatterND(_kind(reduction))(data, indices, updates)


def _kind(reduction: str) -> str | None:
    if reduction not in KINDS:
        raise InvalidModel(f"the reduction {reduction!r} is none of {', '.join(KINDS)}")
    return KINDS[reduction]


@onnx_op
def TensorScatter(
    past: Value,
    update: Value,
    write_indices: Value | None = None,
    *,
    mode: str = "linear",
    axis: int = -2,
) -> Value:
    axis = mv.normalize_axis(axis, past.rank)
    size, length = past.shape[axis], update.shape[axis]
    place = positions(length, past.rank, axis)
    if write_indices is not None:
        first = ew.Cast("int64")(write_indices)
        place = place + mv.reshape(first, first.shape[0], *(1,) * (past.rank - 1))
    if mode == "circular":
        place = ew.Mod()(place, number(size, "int64"))
    return ga.ScatterElements(axis)(past, mv.broadcast_to(place, *update.shape), update)


@onnx_op
def ReverseSequence(x: Value, lengths: Value, *, batch_axis: int = 1, time_axis: int = 0) -> Value:
    batch, time = (mv.normalize_axis(axis, x.rank) for axis in (batch_axis, time_axis))
    shape = tuple(s if i == batch else 1 for i, s in enumerate(x.shape))
    length = mv.reshape(ew.Cast("int64")(lengths), *shape)
    place = positions(x.shape[time], x.rank, time)
    mirrored = ew.Where()(ew.Less()(place, length), length - 1 - place, place)
    return ga.GatherElements(time)(x, mv.broadcast_to(mirrored, *x.shape))
