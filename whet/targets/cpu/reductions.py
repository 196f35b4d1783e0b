"""Reductions inside an expression: over lanes of neighbouring results, or over lanes of their
own."""

from __future__ import annotations

import numpy as np

from whet.ir.sizes import coefficient
from whet.ir.types import NUMPY_DTYPES
from whet.ops.reduce import identity
from whet.plan.kernel import Axis, Expression, Load, Reduction, walk
from whet.targets.cpu import arithmetic
from whet.targets.cpu.arithmetic import compute_type
from whet.targets.cpu.expressions import Emitter, Place
from whet.targets.cpu.llvm import Function, array_literal, literal, vector

UNROLL = 4  # vectors that are accumulated side by side, since an addition takes four cycles
LONG, SMALL = 16, 12  # turns of a loop, and nodes of its body, that are worth writing out


def emit_reduction(e: Emitter, reduction: Reduction) -> tuple[str, int]:
    """The reduction's value and its lanes."""
    if reduction.kind.startswith("arg"):
        return _arg_reduction(e, reduction)
    if e.varies(reduction.symbols):
        return _by_lane(e, reduction)
    inner = _vector_axis(reduction)
    if inner is None:
        with e.scope(vector=None, lanes=1, mask=None, wide={}):
            return _by_lane(e, reduction)
    return _across_lanes(e, reduction, inner), 1


def start(reduction: Reduction, lanes: int) -> str:
    """What an accumulator begins with."""
    first = np.asarray(identity(reduction.kind, NUMPY_DTYPES[reduction.dtype]))
    number = first.item() if first.dtype.kind in "biuf" else float(first)
    return literal(compute_type(reduction.dtype, lanes), number)


def combine(f: Function, kind: str, dtype: str, lanes: int, a: str, b: str) -> str:
    """One more element taken into an accumulator."""
    t = compute_type(dtype, lanes)
    floating = arithmetic.is_float(dtype)
    if kind == "sum":
        return f.binary("fadd" if floating else "add", t, a, b)
    if kind == "prod":
        return f.binary("fmul" if floating else "mul", t, a, b)
    if dtype == "bool":
        return f.binary("or" if kind == "max" else "and", t, a, b)
    if floating:
        return f.extreme(kind, t, b, a)
    return f.intrinsic(f"llvm.{'u' if dtype[0] == 'u' else 's'}{kind}", t, a, b)


def _accumulate(e: Emitter, reduction: Reduction, accumulator: str, body: Expression) -> str:
    """combine(accumulator, body), a product and a sum as one instruction."""
    from whet.ops.elementwise import Mul
    from whet.plan.kernel import Apply

    lanes = e.lanes
    if (
        reduction.kind == "sum"
        and isinstance(body, Apply)
        and isinstance(body.op, Mul)
        and body.dtype in ("float32", "float64")
    ):
        a, b = (e.widened(x) for x in body.args)
        return e.f.fma(compute_type(body.dtype, lanes), a, b, accumulator)
    return combine(e.f, reduction.kind, reduction.dtype, lanes, accumulator, e.widened(body))


def _by_lane(e: Emitter, reduction: Reduction) -> tuple[str, int]:
    """Each lane reduces for itself, in plain loops; long ones have several accumulators."""
    kind = compute_type(reduction.dtype, e.lanes)
    last = reduction.axes[-1]
    small = sum(1 for _ in walk(reduction.body)) <= SMALL
    count = UNROLL if isinstance(last.size, int) and last.size >= LONG and small else 1

    def loops(axes: tuple[Axis, ...], values: list[str]) -> list[str]:
        if axes[1:]:

            def body(i: str, carried: list[str]) -> list[str]:
                with e.scope(places={**e.places, axes[0].name: Place(i)}):
                    e.hoist(reduction.body, _known(e) - frozenset(a.name for a in axes[1:]))
                    return loops(axes[1:], carried)

            return e.f.loop(0, e.size(axes[0].size), 1, body, [(kind, v) for v in values])
        return _lane_loop(e, reduction, values)

    values = loops(reduction.axes, [start(reduction, e.lanes)] * count)
    return _joined(e, reduction, values), e.lanes


def _lane_loop(e: Emitter, reduction: Reduction, values: list[str]) -> list[str]:
    """The innermost loop: a step for each accumulator in every turn, then what is left over."""
    kind = compute_type(reduction.dtype, e.lanes)
    axis, size = reduction.axes[-1], e.size(reduction.axes[-1].size)

    def step(i: str, carried: list[str]) -> list[str]:
        result = []
        for u, value in enumerate(carried):
            with e.scope(places={**e.places, axis.name: Place(i, u)}):
                result.append(_accumulate(e, reduction, value, reduction.body))
        return result

    count = len(values)
    whole = e.f.mul(e.f.div(size, count), count)
    values = e.f.loop(0, whole, count, step, [(kind, v) for v in values])
    if whole != size:
        values[:1] = e.f.loop(whole, size, 1, step, [(kind, values[0])])
    return values


def _joined(e: Emitter, reduction: Reduction, values: list[str]) -> str:
    """Several accumulators as one, in a fixed order."""
    while len(values) > 1:
        half = len(values) // 2
        values = [
            combine(e.f, reduction.kind, reduction.dtype, e.lanes, a, b)
            for a, b in zip(values[:half], values[half:])
        ]
    return values[0]


def _known(e: Emitter) -> frozenset[str]:
    return frozenset(e.places) | frozenset(e.wide)


def _vector_axis(reduction: Reduction) -> Axis | None:
    """The loop along which most loads lie side by side."""
    best, most = None, 0
    for axis in reduction.axes:
        steps = [
            coefficient(n.offset, axis.name) for n in walk(reduction.body) if isinstance(n, Load)
        ]
        if any(s is None for s in steps):
            continue
        score = sum(s == 1 for s in steps)
        if score > most:
            best, most = axis, score
    return best


def _across_lanes(e: Emitter, reduction: Reduction, inner: Axis) -> str:
    """Neighbouring elements in lanes, several vectors side by side, joined at the end in a fixed
    order."""
    f, lanes = e.f, e.full_lanes
    kind = compute_type(reduction.dtype, lanes)
    outer = tuple(a for a in reduction.axes if a is not inner)

    def loops(axes: tuple[Axis, ...], values: list[str]) -> list[str]:
        if not axes:
            return _vector_loop(e, reduction, inner, values)

        def body(i: str, carried: list[str]) -> list[str]:
            with e.scope(places={**e.places, axes[0].name: Place(i)}):
                return loops(axes[1:], carried)

        return f.loop(0, e.size(axes[0].size), 1, body, [(kind, v) for v in values])

    with e.scope(vector=inner.name, lanes=lanes, mask=None, wide={}):
        # What is the same for every step must not be computed anew in each.
        e.hoist(reduction.body, _known(e))
        accumulators = loops(outer, [start(reduction, lanes)] * UNROLL)
        joined = _joined(e, reduction, accumulators)
    return _join_lanes(f, reduction, joined, lanes)


def _vector_loop(e: Emitter, reduction: Reduction, inner: Axis, values: list[str]) -> list[str]:
    f, lanes = e.f, e.lanes
    kind = compute_type(reduction.dtype, lanes)
    size = e.size(inner.size)
    wide = UNROLL * lanes

    def step(i: str, count: int, carried: list[str]) -> list[str]:
        result = list(carried)
        for u in range(count):
            with e.scope(places={**e.places, inner.name: Place(i, u * lanes)}):
                result[u] = _accumulate(e, reduction, result[u], reduction.body)
        return result

    blocks_end = f.mul(f.div(size, wide), wide)
    if blocks_end != 0:
        values = f.loop(
            0, blocks_end, wide, lambda i, c: step(i, UNROLL, c), [(kind, v) for v in values]
        )
    whole_end = f.mul(f.div(size, lanes), lanes)
    if whole_end != blocks_end or not isinstance(size, int):
        first = f.loop(
            blocks_end, whole_end, lanes, lambda i, c: step(i, 1, c), [(kind, values[0])]
        )
        values = [*first, *values[1:]]
    rest = f.sub(size, whole_end)
    if rest == 0:
        return values
    values = list(values)
    mask = lane_mask(f, rest, lanes)
    with e.scope(places={**e.places, inner.name: Place(whole_end)}, mask=mask):
        last = combine(
            f, reduction.kind, reduction.dtype, lanes, values[0], e.widened(reduction.body)
        )
    values[0] = f.select(mask, kind, last, values[0])
    return values


def lane_mask(f: Function, count: str | int, lanes: int) -> str:
    """The first `count` lanes."""
    if isinstance(count, int):
        return array_literal(vector("i1", lanes), [i < count for i in range(lanes)])
    kind = vector("i64", lanes)
    return f.compare("slt", kind, array_literal(kind, range(lanes)), f.splat(kind, count))


def _join_lanes(f: Function, reduction: Reduction, value: str, lanes: int) -> str:
    while lanes > 1:
        kind, half = compute_type(reduction.dtype, lanes), lanes // 2
        if half == 1:
            low, high = f.extract(kind, value, 0), f.extract(kind, value, 1)
        else:
            low = f.shuffle(kind, value, "poison", range(half))
            high = f.shuffle(kind, value, "poison", range(half, lanes))
        value, lanes = combine(f, reduction.kind, reduction.dtype, half, low, high), half
    return value


def _arg_reduction(e: Emitter, reduction: Reduction) -> tuple[str, int]:
    """The index of the extreme element, found one element after the other."""
    if not e.varies(reduction.symbols) and e.lanes > 1:
        with e.scope(vector=None, lanes=1, mask=None, wide={}):
            return _arg_reduction(e, reduction)
    (axis,) = reduction.axes
    f, lanes, dtype = e.f, e.lanes, reduction.body.dtype
    kind, index = compute_type(dtype, lanes), vector("i64", lanes)
    greater = "max" in reduction.kind

    def at(i: str | int) -> str:
        with e.scope(places={**e.places, axis.name: Place(i)}):
            return e.widened(reduction.body)

    def body(i: str, carried: list[str]) -> list[str]:
        best, where = carried
        value = at(i)
        better = f.compare(
            _predicate(dtype, greater, reduction.kind.endswith("_last")), kind, value, best
        )
        return [
            f.select(better, kind, value, best),
            f.select(better, index, e.splat("i64", i), where),
        ]

    first = at(0)
    result = f.loop(
        1, e.size(axis.size), 1, body, [(kind, first), (index, literal(index, 0))], guard=True
    )
    return result[1], lanes


def _predicate(dtype: str, greater: bool, last: bool) -> str:
    how = ("g" if greater else "l") + ("e" if last else "t")
    if arithmetic.is_float(dtype):
        return "o" + how
    return ("u" if dtype[0] == "u" or dtype == "bool" else "s") + how
