"""Resampling an axis: where each output position stands in the input, and what it reads there.

An output element is a weighted sum of taps, one axis after the other. Positions, indices and
weights are small tensors of one axis, so a fused loop reads a table and does two or four products;
where they follow a plain pattern (every f-th element, each element f times) only movement is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from whet.errors import Error
from whet.ir.evaluate import evaluate
from whet.ir.graph import Constant, Graph, Value, constant, topological
from whet.ir.sizes import Size, ceil_divide, floor_divide, maximum
from whet.ops.elementwise import (
    Abs,
    And,
    Cast,
    Ceil,
    Clip,
    Equal,
    Floor,
    Less,
    LessOrEqual,
    Max,
    Min,
    Not,
    Where,
)
from whet.ops.index import Iota, number
from whet.ops.movement import Gather, broadcast_to, reshape, slice_axis, unsqueeze
from whet.ops.reduce import Reduce

MOST_UNROLLED_TAPS = 4


@dataclass(frozen=True)
class Resampling:
    """How one axis of `size` elements becomes one of `new_size`.

    `scale` is what ONNX calls so: output over input. `transform` names the coordinate
    transformation, `start` and `end` what tf_crop_and_resize keeps, in units of the axis.
    """

    size: Size
    new_size: Size
    scale: float | Value
    transform: str
    start: Value | None = None
    end: Value | None = None

    def coordinates(self) -> Value:
        """The float32 position in the input of each output element."""
        i = positions_of(self.new_size)
        old, new = number(self.size, "float32"), number(self.new_size, "float32")
        scale = self.scale if isinstance(self.scale, Value) else constant(self.scale, "float32")
        centred = (i + 0.5) / scale - 0.5
        single = Less()(new, 2.0)
        match self.transform:
            case "half_pixel":
                return centred
            case "half_pixel_symmetric":
                return old / 2.0 * (1.0 - new / (scale * old)) + centred
            case "pytorch_half_pixel":
                return Where()(single, constant(0.0, "float32"), centred)
            case "align_corners":
                return i * (old - 1.0) / Max()(new - 1.0, 1.0)
            case "asymmetric":
                return i / scale
            case "tf_half_pixel_for_nn":
                # Without a change of size there is no shift, as ONNX Runtime has it.
                return Where()(Equal()(scale, 1.0), i, (i + 0.5) / scale)
            case "tf_crop_and_resize":
                assert self.start is not None and self.end is not None
                step = (self.end - self.start) * (old - 1.0) / Max()(new - 1.0, 1.0)
                middle = (self.start + self.end) * 0.5 * (old - 1.0)
                return Where()(single, middle, self.start * (old - 1.0) + i * step)
        raise Error(f"there is no coordinate transformation {self.transform!r}")

    def outside(self) -> Value:
        """Which output elements stand before the first or after the last input element."""
        x = self.coordinates()
        inside = And()(LessOrEqual()(0.0, x), LessOrEqual()(x, number(self.size, "float32") - 1.0))
        return folded(Not()(inside))

    def nearest(self, rounding: str) -> Value:
        """The index of the input element that each output element is."""
        x = self.coordinates()
        rounded = {
            "round_prefer_floor": lambda: Ceil()(x - 0.5),
            "round_prefer_ceil": lambda: Floor()(x + 0.5),
            "floor": lambda: Floor()(x),
            "ceil": lambda: Ceil()(x),
        }
        if rounding not in rounded:
            raise Error(f"there is no way of rounding {rounding!r}")
        return self._inside(rounded[rounding]())

    def factor(self, rounding: str) -> int | None:
        """f where each input element simply stands f times, for every size of the axis."""
        if not isinstance(self.scale, float) or not self.scale.is_integer() or self.scale < 1:
            return None
        f = int(self.scale)
        if self.transform in ("align_corners", "tf_crop_and_resize"):
            return None
        if self.new_size != self.size * f:
            return None
        # The pattern repeats with every input element, so a few of them stand for all.
        index = Resampling(8, 8 * f, self.scale, self.transform).nearest(rounding)
        found = data_of(index)
        same = found is not None and np.array_equal(found, np.arange(8 * f) // f)
        return f if same else None

    def _inside(self, index: Value) -> Value:
        """A float index clamped to the axis."""
        last = number(self.size, "float32") - 1.0
        zero = constant(0.0, "float32")
        return folded(Cast("int64")(Clip()(index, zero, last)))

    def linear(self) -> list[tuple[Value, Value]]:
        """Two taps: the index and the float32 weight for each output element."""
        last = number(self.size, "float32") - 1.0
        x = Clip()(self.coordinates(), constant(0.0, "float32"), last)
        low = Floor()(x)
        part = folded(x - low)
        return [
            (self._inside(low), folded(1.0 - part)),
            (self._inside(low + 1.0), part),
        ]

    def taps(self, mode: str, a: float, antialias: bool, exclude_outside: bool) -> Taps:
        """Any number of taps: the kernel of `mode`, stretched when shrinking with antialiasing."""
        x = self.coordinates()
        low = Floor()(x)
        reach = 1 if mode == "linear" else 2
        count, stretch = self._support(reach, antialias)
        t = unsqueeze(positions_of(count), 0) - number(floor_divide(count, 2) - 1, "float32")
        distance = (t - unsqueeze(x - low, 1)) * stretch
        weight = triangle(distance) if mode == "linear" else keys(distance, a)
        at = unsqueeze(low, 1) + t
        if exclude_outside:
            inside = And()(LessOrEqual()(0.0, at), Less()(at, number(self.size, "float32")))
            weight = Where()(inside, weight, constant(0.0, "float32"))
        if exclude_outside or antialias:
            weight = weight / Reduce("sum", (1,))(weight)
        return Taps(self._inside(at), folded(weight))

    def _support(self, reach: int, antialias: bool) -> tuple[Size, Value]:
        """How many taps there are, and by how much distances to them shrink."""
        if not antialias:
            return 2 * reach, constant(1.0, "float32")
        if isinstance(self.scale, float):
            shrink = min(self.scale, 1.0)
            half: Size = -int(np.floor(-reach / shrink))
            return 2 * half, constant(shrink, "float32")
        half = ceil_divide(reach * maximum(self.size, self.new_size), self.new_size)
        return 2 * half, Min()(self.scale, 1.0)


@dataclass(frozen=True)
class Taps:
    """Indices and weights of a whole axis, [new size, taps]."""

    index: Value
    weight: Value

    def apply(self, x: Value, axis: int) -> Value:
        """The weighted sums along one axis of x."""
        count = self.index.shape[1]
        if isinstance(count, int) and count <= MOST_UNROLLED_TAPS:
            return weighted(x, axis, [self._tap(t) for t in range(count)])
        rows = Gather(axis)(x, self.index)
        shape = (*self.weight.shape, *(1,) * (x.rank - 1 - axis))
        total = Reduce("sum", (axis + 1,))(rows * reshape(self.weight, *shape))
        return reshape(total, *x.shape[:axis], self.index.shape[0], *x.shape[axis + 1 :])

    def _tap(self, t: int) -> tuple[Value, Value]:
        size = self.index.shape[0]
        column = [reshape(slice_axis(v, 1, t, 1), size) for v in (self.index, self.weight)]
        return folded(column[0]), folded(column[1])


def weighted(x: Value, axis: int, taps: list[tuple[Value, Value]]) -> Value:
    """The sum over taps of x at the tap's indices times its weights, along an axis."""
    total: Value | None = None
    for index, weight in taps:
        shape = (*weight.shape, *(1,) * (x.rank - 1 - axis))
        term = take(x, axis, index) * Cast(x.dtype)(reshape(weight, *shape))
        total = term if total is None else total + term
    assert total is not None
    return total


def take(x: Value, axis: int, index: Value) -> Value:
    """x at the indices of one axis; a slice where they step evenly."""
    known = data_of(index)
    if known is None or known.size == 0:
        return Gather(axis)(x, index)
    steps = np.diff(known)
    step = int(steps[0]) if steps.size else 1
    if step != 0 and np.all(steps == step):
        return slice_axis(x, axis, int(known[0]), len(known), step)
    return Gather(axis)(x, index)


def repeat(x: Value, axis: int, times: int) -> Value:
    """Each element along an axis `times` times."""
    shape = x.shape
    wide = broadcast_to(unsqueeze(x, axis + 1), *shape[: axis + 1], times, *shape[axis + 1 :])
    return reshape(wide, *shape[:axis], shape[axis] * times, *shape[axis + 1 :])


def triangle(x: Value) -> Value:
    """1 - |x| within 1 of 0."""
    return Max()(1.0 - Abs()(x), 0.0)


def keys(x: Value, a: float) -> Value:
    """The cubic convolution kernel (Keys 1981, equation 4)."""
    d = Abs()(x)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    zero = constant(0.0, x.dtype)
    return Where()(LessOrEqual()(d, 1.0), near, Where()(Less()(d, 2.0), far, zero))


def positions_of(size: Size) -> Value:
    """0 … size - 1 as float32."""
    if isinstance(size, int):
        return constant(np.arange(size), "float32")
    return Iota(size, "float32")()


def folded(value: Value) -> Value:
    """The value as a Constant where it is computed from constants alone."""
    for v in topological((value,)):
        if not v.inputs and not isinstance(v.op, Constant):
            return value
    return constant(evaluate(Graph((), (value,)), {})[0])


def data_of(value: Value) -> np.ndarray | None:
    """The elements of a Constant, else None."""
    return value.op.data if isinstance(value.op, Constant) else None


def scaled_size(size: Size, scale: float) -> Size:
    """floor(size * scale), in float32 for a known size as runtimes have it."""
    if isinstance(size, int):
        return int(np.floor(np.float32(size) * np.float32(scale)))
    ratio = simplest(scale)
    return floor_divide(size * ratio.numerator, ratio.denominator)


def simplest(scale: float) -> Fraction:
    """The fraction of the smallest denominator that is the scale in float32."""
    for limit in (1, 16, 256, 4096):
        ratio = Fraction(scale).limit_denominator(limit)
        if np.float32(float(ratio)) == np.float32(scale):
            return ratio
    return Fraction(float(np.float32(scale)))


def quotient(new: Size, old: Size) -> float | Value:
    """new / old as ONNX's scale: a number where it is known."""
    if isinstance(new, int) and isinstance(old, int):
        return float(np.float32(new) / np.float32(max(old, 1)))
    if new == old:
        return 1.0
    whole = floor_divide(new, old)
    if isinstance(whole, int) and whole * old == new:
        return float(whole)
    return number(new, "float32") / number(old, "float32")
