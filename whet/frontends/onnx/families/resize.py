"""ONNX Resize and Upsample: one axis after the other, channels last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from whet.errors import ShapeError
from whet.frontends.onnx.registry import Refused, onnx_op
from whet.frontends.onnx.windows import channels_first, channels_last
from whet.ir.graph import Value, constant
from whet.ir.sizes import Size, floor_divide, is_less, maximum, minimum
from whet.ir.types import FLOATS
from whet.ops.elementwise import Cast, Max, Min, Where
from whet.ops.movement import normalize_axis, reshape, slice_axis
from whet.ops.reduce import widened
from whet.ops.resize import (
    Resampling,
    quotient,
    repeat,
    scaled_size,
    take,
    weighted,
)

if TYPE_CHECKING:
    from whet.frontends.onnx.reading import Reading


@dataclass(frozen=True)
class Interpolation:
    """What ONNX's attributes say of how to read between the elements."""

    mode: str = "nearest"
    transform: str = "asymmetric"
    rounding: str = "floor"
    cubic: float = -0.75
    antialias: bool = False
    exclude_outside: bool = False
    extrapolation: float = 0.0

    def resample(self, x: Value, axis: int, sampling: Resampling) -> Value:
        """x with one axis resampled."""
        if self.mode == "nearest":
            times = sampling.factor(self.rounding)
            if times is not None:
                return repeat(x, axis, times) if times > 1 else x
            return take(x, axis, sampling.nearest(self.rounding))
        if self.mode == "linear" and not self.antialias:
            return weighted(x, axis, sampling.linear())
        if self.mode not in ("linear", "cubic"):
            raise Refused(f"mode {self.mode!r} is none of nearest, linear, cubic")
        taps = sampling.taps(self.mode, self.cubic, self.antialias, self.exclude_outside)
        return taps.apply(x, axis)


def resized(x: Value, samplings: dict[int, Resampling], how: Interpolation) -> Value:
    """x with the given axes resampled; other than nearest in float32 or wider, rounded once."""
    samplings = {a: s for a, s in samplings.items() if not _is_identity(s)}
    last = x.rank >= 3 and bool(samplings) and min(samplings) >= 2
    y = channels_last(x) if last else x
    shift = 1 if last else 0
    integer = x.dtype not in FLOATS
    if how.mode != "nearest":
        y = Cast("float32")(y) if integer else widened(y)
    for axis, sampling in samplings.items():
        y = how.resample(y, axis - shift, sampling)
    for axis, sampling in samplings.items():
        if sampling.transform == "tf_crop_and_resize":
            outside = sampling.outside()
            outside = reshape(outside, *outside.shape, *(1,) * (y.rank - 1 - axis + shift))
            y = Where()(outside, Cast(y.dtype)(_float(how.extrapolation)), y)
    y = y if y.dtype == x.dtype else Cast(x.dtype)(y)
    return channels_first(y) if last else y


def _float(x: float) -> Value:
    return constant(x, "float32")


def _is_identity(s: Resampling) -> bool:
    same = s.size == s.new_size and isinstance(s.scale, float) and s.scale == 1.0
    return same and s.transform != "tf_crop_and_resize"


@onnx_op
def Upsample(x: Value, *, mode: str = "nearest", scales: Sequence[float]) -> Value:
    return _scaled(x, tuple(scales), Interpolation(_plain_mode(mode)))


@onnx_op
def Upsample_9(x: Value, scales: Value, *, mode: str = "nearest", node: Reading) -> Value:
    return _scaled(x, _floats(scales, node), Interpolation(_plain_mode(mode)))


@onnx_op
def Resize_10(x: Value, scales: Value, *, mode: str = "nearest", node: Reading) -> Value:
    numbers = _floats(scales, node)
    # ONNX Runtime, the only implementation of this opset's nearest, rounds up when shrinking.
    samplings = _samplings(x, range(x.rank), numbers, "asymmetric")
    for axis, sampling in samplings.items():
        shrinks = numbers[axis] < 1
        how = Interpolation(_plain_mode(mode), rounding="ceil" if shrinks else "floor")
        x = resized(x, {axis: sampling}, how)
    return x


def _plain_mode(mode: str) -> str:
    return "linear" if mode == "bilinear" else mode


MOST_TIMES = 2.0**24  # a scale beyond that is no number of times that float32 could tell apart


def _floats(scales: Value, node: Reading) -> tuple[float, ...]:
    numbers = tuple(float(s) for s in node.contents(scales, "scales").ravel())
    if not all(0 < number <= MOST_TIMES for number in numbers):
        raise ShapeError(f"the scales {list(numbers)} must be above 0 and at most {MOST_TIMES:g}")
    return numbers


def _scaled(x: Value, scales: Sequence[float], how: Interpolation) -> Value:
    return resized(x, _samplings(x, range(x.rank), scales, how.transform), how)


def _samplings(
    x: Value, axes: Sequence[int], scales: Sequence[float], transform: str
) -> dict[int, Resampling]:
    if len(scales) != len(axes):
        raise Refused(f"{len(scales)} scales are given for {len(axes)} axes")
    return {
        axis: Resampling(x.shape[axis], scaled_size(x.shape[axis], scale), float(scale), transform)
        for axis, scale in zip(axes, scales)
    }


@onnx_op
def Resize_11(
    x: Value,
    roi: Value | None = None,
    scales: Value | None = None,
    sizes: Value | None = None,
    *,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
    node: Reading,
) -> Value:
    over = tuple(normalize_axis(a, x.rank) for a in axes) if axes else tuple(range(x.rank))
    how = Interpolation(
        mode,
        coordinate_transformation_mode,
        nearest_mode,
        cubic_coeff_a,
        bool(antialias),
        bool(exclude_outside),
        extrapolation_value,
    )
    targets = _targets(x, over, scales, sizes, keep_aspect_ratio_policy, node)
    samplings = {}
    for place, (axis, (new, scale)) in enumerate(zip(over, targets)):
        start = end = None
        if how.transform == "tf_crop_and_resize":
            if roi is None:
                raise Refused("tf_crop_and_resize needs the input roi")
            wide, both = Cast("float32")(roi), (place, place + len(over))
            start, end = (reshape(slice_axis(wide, 0, i, 1)) for i in both)
            if data_is(start, 0.0, node) and data_is(end, 1.0, node) and new == x.shape[axis]:
                continue
            if scales is not None and not _given(sizes):
                new = _cropped_size(x.shape[axis], start, end, scale, node)
        samplings[axis] = Resampling(x.shape[axis], new, scale, how.transform, start, end)
    return resized(x, samplings, how)


def data_is(value: Value, wanted: float, node: Reading) -> bool:
    """Whether a scalar is known to be the number."""
    known = node.known(value)
    return known is not None and float(known) == wanted


def _given(value: Value | None) -> bool:
    """Whether an optional tensor holds anything: exporters write an empty one for absent."""
    return value is not None and value.shape != (0,)


def _cropped_size(
    size: Size, start: Value, end: Value, scale: float | Value, node: Reading
) -> Size:
    """floor(size * (end - start) * scale): the kept part of the axis, scaled."""
    part = float(node.contents(end, "roi")) - float(node.contents(start, "roi"))
    assert isinstance(scale, float)
    return scaled_size(size, float(np.float32(part) * np.float32(scale)))


def _targets(
    x: Value,
    axes: Sequence[int],
    scales: Value | None,
    sizes: Value | None,
    policy: str,
    node: Reading,
) -> list[tuple[Size, float | Value]]:
    """The new size and the scale of each axis."""
    old = [x.shape[a] for a in axes]
    if scales is not None and _given(scales):
        factors = _floats(scales, node)
        if len(factors) != len(axes):
            raise Refused(f"{len(factors)} scales are given for {len(axes)} axes")
        return [(scaled_size(n, f), float(f)) for n, f in zip(old, factors)]
    if sizes is None or not _given(sizes):
        raise Refused("neither scales nor sizes is given")
    wanted = node.sizes(sizes, "sizes")
    if len(wanted) != len(axes):
        raise Refused(f"{len(wanted)} sizes are given for {len(axes)} axes")
    if negative := [size for size in wanted if is_less(size, 0)]:
        raise Refused(f"an axis cannot have {negative[0]} elements")
    if policy == "stretch":
        return [(new, quotient(new, n)) for new, n in zip(wanted, old)]
    return _kept_aspect(old, wanted, policy)


def _kept_aspect(
    old: Sequence[Size], wanted: Sequence[Size], policy: str
) -> list[tuple[Size, float | Value]]:
    """One scale for all axes: the least that any of them asks for, or the greatest."""
    if policy not in ("not_larger", "not_smaller"):
        raise Refused(f"keep_aspect_ratio_policy {policy!r} is not known")
    pick, pick_value = (minimum, Min()) if policy == "not_larger" else (maximum, Max())
    # round(scale * n) with halves up, in integers: the scale is the extreme of wanted / old.
    new = [pick(*(floor_divide(2 * w * n + m, 2 * m) for w, m in zip(wanted, old))) for n in old]
    ratios = [quotient(w, m) for w, m in zip(wanted, old)]
    if all(isinstance(r, float) for r in ratios):
        scale: float | Value = (min if policy == "not_larger" else max)(ratios)  # type: ignore[type-var]
    else:
        values = [r if isinstance(r, Value) else _float(r) for r in ratios]
        scale = values[0]
        for v in values[1:]:
            scale = pick_value(scale, v)
    return [(n, scale) for n in new]
