"""Reductions and elementwise operators before a reshape that merges distant axes.

Group normalisation, as exporters write it, merges a group's channels with the pixels, which stand
apart where channels come last. What is computed there needs no merged axis: it moves above the
reshape, which then meets the one that splits the axes again.
"""

from __future__ import annotations

from collections.abc import Sequence

from whet.ir.graph import Value
from whet.ir.rewrite import Rules, rule_for
from whet.ir.sizes import Size, floor_divide, modulo
from whet.ops.movement import Reshape, reshape
from whet.ops.reduce import Reduce
from whet.passes.axes import carried, groups
from whet.passes.movement import BROADCASTING, only
from whet.passes.sink import transposed

Runs = list[tuple[list[int], list[int]]]


def merge_of(value: Value) -> tuple[Value, Runs] | None:
    """x and its runs of axes, where the Value is x with each run merged, and some are far apart."""
    if not isinstance(value.op, Reshape) or value.is_static:
        return None
    before = transposed(only(value))
    if before is None or carried(only(value).shape, value.shape, before[1]) is not None:
        return None
    fine = refined(only(value).shape, value.shape)
    runs = groups(fine, value.shape) if fine is not None else None
    if fine is None or runs is None or any(len(outputs) > 1 for _, outputs in runs):
        return None
    return reshape(only(value), *fine), runs


def refined(a: Sequence[Size], b: Sequence[Size]) -> tuple[Size, ...] | None:
    """a with axes split where an axis of b ends within them: a reshape to b then only merges."""
    if 0 in a or 0 in b:
        return None
    left, right, fine = list(a), [size for size in b if size != 1], []
    while left:
        size = left.pop(0)
        if size == 1:
            fine.append(size)
            continue
        if not right:
            return None
        if modulo(right[0], size) == 0:
            right[0] = floor_divide(right[0], size)
            fine.append(size)
        elif modulo(size, right[0]) == 0:
            left.insert(0, floor_divide(size, right[0]))
            fine.append(right[0])
            right[0] = 1
        else:
            return None
        if right[0] == 1:
            right.pop(0)
    return tuple(fine)


@rule_for(Reduce)
def reduce_before_merge(value: Value) -> Value | None:
    merge = merge_of(only(value))
    assert isinstance(value.op, Reduce)
    if merge is None:
        return None
    x, runs = merge
    axes = {i for inputs, (axis,) in runs if axis in value.op.axes for i in inputs}
    if not axes:
        return None
    return reshape(Reduce(value.op.kind, tuple(sorted(axes)))(x), *value.shape)


@rule_for(*BROADCASTING)
def elementwise_before_merge(value: Value) -> Value | None:
    for merged in value.inputs:
        if merged is None or merged.shape != value.shape:
            continue
        merge = merge_of(merged)
        if merge is None:
            continue
        x, runs = merge
        inputs = [i and _unmerged(i, x.shape, value.shape, runs) for i in value.inputs]
        if all(new is not None or old is None for new, old in zip(inputs, value.inputs)):
            return reshape(value.op(*inputs), *value.shape)
    return None


def _unmerged(
    value: Value, wide: Sequence[Size], shape: Sequence[Size], runs: Runs
) -> Value | None:
    """What broadcasts to the wide shape as the Value does to the merged one."""
    if isinstance(value.op, Reshape) and only(value).shape == tuple(wide):
        return only(value)
    if all(size == 1 for size in value.shape):
        return reshape(value)
    sizes = (1,) * (len(shape) - value.rank) + value.shape
    split: list[Size] = [1] * len(wide)
    for inputs, (axis,) in runs:
        if sizes[axis] == shape[axis]:
            for i in inputs:
                split[i] = wide[i]
        elif sizes[axis] != 1:
            return None
    return reshape(value, *split)


UNMERGE: Rules = [reduce_before_merge, elementwise_before_merge]
