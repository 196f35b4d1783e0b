"""ONNX operators that move elements: shapes, joins, slices, padding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from whet.errors import InvalidModel, ShapeError
from whet.frontends.onnx.families.dynamic import (
    dynamic_reshape,
    dynamic_slice,
    has_known_length,
)
from whet.frontends.onnx.registry import NeedsValue, Refused, onnx_op
from whet.ir.graph import Value, constant
from whet.ir.sizes import (
    Expr,
    Size,
    ceil_divide,
    floor_divide,
    is_different,
    is_less,
    maximum,
    minimum,
    product,
)
from whet.ops import movement as mv
from whet.ops.elementwise import broadcast, require_equal

if TYPE_CHECKING:
    from whet.frontends.onnx.importer import Reading

UNBOUNDED = 2**31 - 1  # exporters write this or more (or less than its negative) for "to the end"


@onnx_op
def Shape(x: Value, *, start: int = 0, end: int | None = None) -> Value:
    return mv.Sizes(x.shape[start:end])()


@onnx_op
def Size_1(x: Value) -> Value:
    return mv.reshape(mv.Sizes((product(x.shape),))())


@onnx_op
def Reshape(x: Value, shape: Value, *, allowzero: int = 0, node: Reading) -> Value:
    if node.known(shape) is None and has_known_length(shape):
        return dynamic_reshape(x, shape, bool(allowzero), node)
    sizes = list(node.sizes(shape, "the shape of Reshape"))
    if not allowzero:
        if any(s == 0 and i >= x.rank for i, s in enumerate(sizes)):
            raise ShapeError(f"a 0 in the shape {sizes} has no axis of {x.type} to copy")
        sizes = [x.shape[i] if s == 0 else s for i, s in enumerate(sizes)]
    if -1 in sizes:
        place = sizes.index(-1)
        rest = product(s for i, s in enumerate(sizes) if i != place)
        sizes[place] = _missing_size(x, rest, sizes)
    return mv.reshape(x, *sizes)


def _missing_size(x: Value, rest: Size, sizes: list[Size]) -> Size:
    """What -1 stands for in a shape whose other sizes multiply to `rest`."""
    if rest == 0:
        raise ShapeError(f"the -1 of the shape {sizes} could be any size")
    return floor_divide(product(x.shape), rest)


@onnx_op
def Flatten(x: Value, *, axis: int = 1) -> Value:
    if not -x.rank <= axis <= x.rank:
        raise ShapeError(f"axis {axis} does not exist in a tensor of {x.rank} axes")
    axis = axis + x.rank if axis < 0 else axis
    return mv.reshape(x, product(x.shape[:axis]), product(x.shape[axis:]))


@onnx_op
def Squeeze(x: Value, *, axes: tuple[int, ...] | None = None) -> Value:
    return mv.squeeze(x, *(_axes_of_one(x) if axes is None else axes))


@onnx_op
def Squeeze_13(x: Value, axes: Value | None = None, *, node: Reading) -> Value:
    return Squeeze(x, axes=None if axes is None else known_axes(node, axes))


def known_axes(node: Reading, axes: Value) -> tuple[int, ...]:
    """The axes that a tensor lists."""
    known = node.sizes(axes, "the list of axes")
    if any(isinstance(axis, Expr) for axis in known):
        raise NeedsValue(axes, "the list of axes")
    return tuple(int(axis) for axis in known)


def one_size(node: Reading, value: Value, what: str) -> Size:
    """The one element of an integer tensor, which cannot be negative."""
    known = node.counts(value, what)
    if len(known) != 1:
        raise ShapeError(f"{what} must be one number, got {value.type}")
    return known[0]


def _axes_of_one(x: Value) -> tuple[int, ...]:
    if any(s != 1 and not is_different(s, 1) for s in x.shape):
        raise NeedsValue(mv.Sizes(x.shape)(), "which axes have the size 1")
    return tuple(i for i, s in enumerate(x.shape) if s == 1)


@onnx_op
def Unsqueeze(x: Value, *, axes: tuple[int, ...]) -> Value:
    if len({axis % (x.rank + len(axes)) for axis in axes}) != len(axes):
        raise InvalidModel(f"the axes {axes} name one axis twice")
    return mv.unsqueeze(x, *axes)


@onnx_op
def Unsqueeze_13(x: Value, axes: Value, *, node: Reading) -> Value:
    return Unsqueeze(x, axes=known_axes(node, axes))


@onnx_op
def Transpose(x: Value, *, perm: tuple[int, ...] | None = None) -> Value:
    order = tuple(reversed(range(x.rank))) if perm is None else perm
    return mv.transpose(x, *(mv.normalize_axis(axis, x.rank) for axis in order))


@onnx_op
def Expand(x: Value, shape: Value, *, node: Reading) -> Value:
    wanted = node.counts(shape, "the shape of Expand")
    return mv.broadcast_to(x, *broadcast(x.shape, wanted))


@onnx_op
def Tile(x: Value, repeats: Value, *, node: Reading) -> Value:
    counts = node.counts(repeats, "the repeats of Tile")
    if len(counts) != x.rank:
        raise ShapeError(f"{len(counts)} repeats do not fit the {x.rank} axes of {x.type}")
    apart = mv.reshape(x, *(s for size in x.shape for s in (1, size)))
    stretched = mv.broadcast_to(apart, *(s for pair in zip(counts, x.shape) for s in pair))
    return mv.reshape(stretched, *(count * size for count, size in zip(counts, x.shape)))


@onnx_op
def Concat(*xs: Value, axis: int) -> Value:
    axis = mv.normalize_axis(axis, xs[0].rank)
    return xs[0] if len(xs) == 1 else mv.Concat(axis)(*xs)


@onnx_op
def Split(
    x: Value, *, axis: int = 0, split: tuple[int, ...] | None = None, node: Reading
) -> tuple[Value, ...]:
    size = x.shape[mv.normalize_axis(axis, x.rank)]
    if split is None:
        part = floor_divide(size, node.outputs)
        require_equal(part * node.outputs, size, f"the axis and {node.outputs} equal parts")
        return mv.split(x, (part,) * node.outputs, axis)
    return _split(x, split, axis, node)


@onnx_op
def Split_13(
    x: Value, split: Value | None = None, *, axis: int = 0, node: Reading
) -> tuple[Value, ...]:
    if split is None:
        return Split(x, axis=axis, node=node)
    return _split(x, node.counts(split, "the sizes of Split"), axis, node)


@onnx_op
def Split_18(
    x: Value,
    split: Value | None = None,
    *,
    axis: int = 0,
    num_outputs: int | None = None,
    node: Reading,
) -> tuple[Value, ...]:
    if split is not None:
        return _split(x, node.counts(split, "the sizes of Split"), axis, node)
    count = node.outputs if num_outputs is None else num_outputs
    size = x.shape[mv.normalize_axis(axis, x.rank)]
    part = ceil_divide(size, count)
    last = size - part * (count - 1)
    if is_less(last, 0):
        raise ShapeError(f"an axis of {size} cannot be cut into {count} parts of {part}")
    return _split(x, (*(part,) * (count - 1), last), axis, node)


def _split(x: Value, sizes: tuple[Size, ...], axis: int, node: Reading) -> tuple[Value, ...]:
    if len(sizes) != node.outputs:
        raise ShapeError(f"{len(sizes)} parts do not fit {node.outputs} outputs")
    total: Size = 0
    for size in sizes:
        total = total + size
    require_equal(
        total, x.shape[mv.normalize_axis(axis, x.rank)], "the sum of the parts and the axis"
    )
    return mv.split(x, sizes, axis)


@onnx_op
def Slice(
    x: Value,
    *,
    starts: tuple[int, ...],
    ends: tuple[int, ...],
    axes: tuple[int, ...] | None = None,
) -> Value:
    return _slice(x, starts, ends, range(len(starts)) if axes is None else axes, (1,) * len(starts))


@onnx_op
def Slice_10(
    x: Value,
    starts: Value,
    ends: Value,
    axes: Value | None = None,
    steps: Value | None = None,
    *,
    node: Reading,
) -> Value:
    count = starts.shape[0] if starts.rank else 1
    if axes is None and isinstance(count, Expr):
        raise NeedsValue(starts, "the number of axes of Slice")
    places = tuple(range(count)) if axes is None else known_axes(node, axes)
    strides = (1,) * len(places) if steps is None else node.sizes(steps, "the steps of Slice")
    forwards = all(isinstance(step, int) and step > 0 for step in strides)
    if forwards and (node.known(starts) is None or node.known(ends) is None):
        return _dynamic_slice(x, starts, ends, places, strides, node)
    first = node.sizes(starts, "the starts of Slice")
    return _slice(x, first, node.sizes(ends, "the ends of Slice"), places, strides)


def _dynamic_slice(
    x: Value,
    starts: Value,
    ends: Value,
    axes: tuple[int, ...],
    steps: tuple[Size, ...],
    node: Reading,
) -> Value:
    """Slice where starts or ends are data, forwards."""
    if not starts.shape == ends.shape == (len(axes),) == (len(steps),):
        raise ShapeError("the starts, ends, axes and steps of Slice differ in number")
    for i, (axis, step) in enumerate(zip(axes, steps)):
        start, end = mv.slice_axis(starts, 0, i, 1), mv.slice_axis(ends, 0, i, 1)
        axis = mv.normalize_axis(axis, x.rank)
        x = dynamic_slice(x, start, end, axis, step, node)  # type: ignore[arg-type]
    return x


def _slice(
    x: Value,
    starts: tuple[Size, ...],
    ends: tuple[Size, ...],
    axes: range | tuple[int, ...],
    steps: tuple[Size, ...],
) -> Value:
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise ShapeError("the starts, ends, axes and steps of Slice differ in number")
    for start, end, axis, step in zip(starts, ends, axes, steps):
        axis = mv.normalize_axis(axis, x.rank)
        if isinstance(step, Expr) or step == 0:
            raise Refused(f"the step {step} of Slice must be a number other than 0")
        first, count = slice_range(x.shape[axis], start, end, step)
        x = mv.slice_axis(x, axis, first, count, step)
    return x


def slice_range(size: Size, start: Size, end: Size, step: int) -> tuple[Size, Size]:
    """The first index, and how many, that Slice takes: as Python does, but for a start before the
    first element, which backwards is that element too."""
    start, end = from_front(start, size), from_front(end, size)
    if step > 0:
        start = maximum(start, 0)
        # min(size, end) - start is the least of the two differences.
        room = minimum(size - start, end - start)
    else:
        start = minimum(maximum(start, 0), size - 1)
        room = minimum(start + 1, start - end)
        step = -step
    return start, maximum(ceil_divide(room, step), 0)


def from_front(index: Size, size: Size) -> Size:
    """An index that may count from the end, counted from the front; far outside, just outside."""
    if isinstance(index, int) and abs(index) >= UNBOUNDED:
        return size if index > 0 else -1
    if is_less(-1, index):
        return index
    if is_less(index, 0):
        return index + size
    return index + size * (1 - minimum(maximum(index + 1, 0), 1))


@onnx_op
def Pad(x: Value, *, pads: tuple[int, ...], mode: str = "constant", value: float = 0.0) -> Value:
    return pad(x, pads, range(x.rank), mode, constant(value, x.dtype))


@onnx_op
def Pad_11(
    x: Value,
    pads: Value,
    fill: Value | None = None,
    axes: Value | None = None,
    *,
    mode: str = "constant",
    node: Reading,
) -> Value:
    sizes = node.sizes(pads, "the padding of Pad")
    places = range(x.rank) if axes is None else known_axes(node, axes)
    return pad(x, sizes, places, mode, zero(x) if fill is None else mv.reshape(fill))


def zero(x: Value) -> Value:
    """What x's dtype has for nothing: 0, False or the empty string."""
    return constant("" if x.dtype == "string" else 0, x.dtype)


def pad(
    x: Value, pads: tuple[Size, ...], axes: range | tuple[int, ...], mode: str, fill: Value
) -> Value:
    """x with pads[i] more elements before and pads[i + len(axes)] behind axes[i], or fewer."""
    if len(pads) != 2 * len(axes):
        raise ShapeError(f"{len(pads)} sizes of padding do not fit {len(axes)} axes")
    before: list[Size] = [0] * x.rank
    after: list[Size] = [0] * x.rank
    for i, axis in enumerate(axes):
        before[mv.normalize_axis(axis, x.rank)] = pads[i]
        after[mv.normalize_axis(axis, x.rank)] = pads[i + len(axes)]
    for axis, size in enumerate(x.shape):
        front, back = maximum(-before[axis], 0), maximum(-after[axis], 0)
        x = mv.slice_axis(x, axis, front, size - front - back)
    before = [maximum(b, 0) for b in before]
    after = [maximum(a, 0) for a in after]
    if all(p == 0 for p in (*before, *after)):
        return x
    return mv.Pad(tuple(before), tuple(after), mode)(x, fill)


@onnx_op
def CenterCropPad(
    x: Value, shape: Value, *, axes: tuple[int, ...] | None = None, node: Reading
) -> Value:
    wanted = node.counts(shape, "the shape of CenterCropPad")
    places = range(x.rank) if axes is None else axes
    if len(wanted) != len(places):
        raise ShapeError(f"{len(wanted)} sizes do not fit {len(places)} axes")
    for axis, size in zip(places, wanted):
        axis = mv.normalize_axis(axis, x.rank)
        surplus = maximum(x.shape[axis] - size, 0)
        x = mv.slice_axis(x, axis, floor_divide(surplus, 2), x.shape[axis] - surplus)
        missing = size - x.shape[axis]
        before = floor_divide(missing, 2)
        x = pad(x, (before, missing - before), (axis,), "constant", zero(x))
    return x
