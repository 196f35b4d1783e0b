"""Orders of axes, and which axes of a reshape correspond."""

from __future__ import annotations

import math
from collections.abc import Sequence

from whet.ir.sizes import Size, is_less, modulo

Order = tuple[int, ...]


def inverse(order: Sequence[int]) -> Order:
    """The order that undoes a transpose by `order`."""
    back = [0] * len(order)
    for place, axis in enumerate(order):
        back[axis] = place
    return tuple(back)


def moves_only_ones(shape: Sequence[Size], order: Order) -> bool:
    """Whether a transpose leaves the elements in place: only axes of size 1 pass others."""
    kept = [axis for axis in order if shape[axis] != 1]
    return kept == sorted(kept)


def groups(a: Sequence[Size], b: Sequence[Size]) -> list[tuple[list[int], list[int]]] | None:
    """The runs of axes that a reshape from a to b maps onto each other, without axes of size 1.

    None where the sizes do not tell.
    """
    if 0 in a or 0 in b:
        return None
    left = [(i, s) for i, s in enumerate(a) if s != 1]
    right = [(i, s) for i, s in enumerate(b) if s != 1]
    found = []
    while left or right:
        if not left or not right:
            return None
        run = _run(left, right)
        if run is None:
            return None
        m, n = run
        found.append(([i for i, _ in left[:m]], [i for i, _ in right[:n]]))
        left, right = left[m:], right[n:]
    return found


def _run(left: list[tuple[int, Size]], right: list[tuple[int, Size]]) -> tuple[int, int] | None:
    """How many of the first axes on each side have the same product."""
    m = n = 1
    a, b = left[0][1], right[0][1]
    while a != b:
        if _is_part(a, b):
            if m == len(left):
                return None
            a, m = a * left[m][1], m + 1
        elif _is_part(b, a):
            if n == len(right):
                return None
            b, n = b * right[n][1], n + 1
        else:
            return None
    return m, n


def _is_part(a: Size, b: Size) -> bool:
    """Whether a needs further factors to reach b."""
    if isinstance(a, int) and isinstance(b, int):
        return a < b
    return modulo(b, a) == 0 or is_less(a, b)


def carried(a: Sequence[Size], b: Sequence[Size], order: Order) -> Order | None:
    """The order q such that reshape(transpose(y, order), b) is transpose(reshape(y, …), q).

    a is the shape between. None where the reshape merges axes that are no neighbours in y.
    """
    runs = groups(a, b)
    if runs is None:
        return None
    back = inverse(order)
    sequence = [i for i in back if a[i] != 1]
    place = {axis: k for k, axis in enumerate(sequence)}
    for inputs, _ in runs:
        first = place[inputs[0]]
        if sequence[first : first + len(inputs)] != inputs:
            return None
    ordered = sorted(runs, key=lambda run: place[run[0][0]])
    axes = [axis for _, outputs in ordered for axis in outputs]
    return inverse(_with_ones(axes, b))


def gathered_groups(
    a: Sequence[Size], b: Sequence[Size], order: Order
) -> tuple[Order, Order] | None:
    """p, q: reshape(transpose(y, order), b) is transpose(reshape(transpose(y, p), …), q).

    p brings the axes that the reshape from a to b merges together, where the largest stands in y.
    """
    runs = groups(a, b)
    if runs is None:
        return None
    ordered = sorted(runs, key=lambda run: order[max(run[0], key=lambda i: _extent(a[i]))])
    first = [axis for inputs, _ in ordered for axis in inputs]
    together = tuple(order[i] for i in _with_ones(first, a))
    axes = [axis for _, outputs in ordered for axis in outputs]
    return together, inverse(_with_ones(axes, b))


def _extent(size: Size) -> float:
    """A size for comparison; one that only a run can tell is taken to be large."""
    return size if isinstance(size, int) else math.inf


def _with_ones(axes: list[int], shape: Sequence[Size]) -> list[int]:
    """The axes with those of size 1 put back, each behind the axis that it follows in the shape."""
    result = list(axes)
    for axis, size in enumerate(shape):
        if size == 1 and axis not in axes:
            behind = axis - 1
            result.insert(result.index(behind) + 1 if behind >= 0 else 0, axis)
    return result
