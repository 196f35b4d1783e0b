"""Where windows stand on an axis: pads, auto_pad, strides, dilations and ceil_mode as sizes."""

from __future__ import annotations

from collections.abc import Sequence

from whet.frontends.onnx.registry import Refused
from whet.ir.graph import Value
from whet.ir.sizes import Size, ceil_divide, floor_divide, maximum, minimum
from whet.ops.contract import window_count
from whet.ops.movement import transpose

Sizes = tuple[Size, ...]


def each(values: Sequence[int] | None, count: int, default: int, what: str) -> tuple[int, ...]:
    """One number for each spatial axis, none below the default."""
    if not values:
        return (default,) * count
    if len(values) != count:
        raise Refused(f"{what} has {len(values)} numbers, {count} are needed")
    if min(values) < default:
        raise Refused(f"{what} {list(values)} has numbers below {default}")
    return tuple(values)


def spans(kernel: Sequence[Size], dilations: Sequence[int]) -> Sizes:
    """How many elements of each axis a window stretches over."""
    return tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations))


def padding(
    auto_pad: str,
    pads: Sequence[int] | None,
    sizes: Sequence[Size],
    span: Sequence[Size],
    strides: Sequence[int],
) -> tuple[Sizes, Sizes]:
    """How many elements are added before and after each axis."""
    count = len(sizes)
    if auto_pad == "VALID":
        return (0,) * count, (0,) * count
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        needed = [
            maximum((ceil_divide(n, s) - 1) * s + k - n, 0) for n, k, s in zip(sizes, span, strides)
        ]
        return halves(needed, auto_pad == "SAME_UPPER")
    if auto_pad not in ("NOTSET", ""):
        raise Refused(f"auto_pad {auto_pad!r} is none of NOTSET, SAME_UPPER, SAME_LOWER, VALID")
    flat = each(pads, 2 * count, 0, "pads")
    return flat[:count], flat[count:]


def halves(totals: Sequence[Size], more_after: bool) -> tuple[Sizes, Sizes]:
    """Each total in two halves, before and after; what is odd goes to one side."""
    low = tuple(floor_divide(t, 2) for t in totals)
    high = tuple(t - h for t, h in zip(totals, low))
    return (low, high) if more_after else (high, low)


def window_counts(
    sizes: Sequence[Size],
    before: Sequence[Size],
    after: Sequence[Size],
    span: Sequence[Size],
    strides: Sequence[int],
    ceil_mode: bool,
) -> Sizes:
    """How many windows fit on each axis; with ceil_mode the last may hang over its end."""
    counts: list[Size] = []
    for n, b, a, k, s in zip(sizes, before, after, span, strides):
        room = n + b + a - k
        if ceil_mode:
            counts.append(minimum(ceil_divide(room, s), floor_divide(n + b - 1, s)) + 1)
        else:
            counts.append(window_count(n + b + a, k, s))
    return tuple(counts)


def channels_last(x: Value) -> Value:
    """x[N, C, *S] as [N, *S, C]."""
    return transpose(x, 0, *range(2, x.rank), 1)


def channels_first(x: Value) -> Value:
    """x[N, *S, C] as [N, C, *S]."""
    return transpose(x, 0, x.rank - 1, *range(1, x.rank - 1))
