"""Steps of a random graph that are elementwise, or only move elements."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from tests.frontends.drawing import Drawing, broadcast

SMOOTH = ("Sigmoid", "Tanh", "Exp", "Erf", "Softplus", "Sqrt", "Log", "Reciprocal", "Sin", "Cos")
SMOOTH += ("Gelu", "Mish", "Softsign", "Elu", "Selu", "HardSwish", "Celu", "Atan", "HardSigmoid")
EXACT = ("Relu", "Neg", "Abs", "Identity", "LeakyRelu")


def smooth(d: Drawing) -> Any:
    return d.node(d.of(*SMOOTH), [d.pick()])


def exact(d: Drawing) -> Any:
    operator = d.of(*EXACT)
    attributes = {"alpha": 0.25} if operator == "LeakyRelu" else {}
    return d.node(operator, [d.pick("fi" if operator == "Neg" else "f")], exact=True, **attributes)


def gate(d: Drawing) -> Any:
    """x * sigmoid(x), as exporters write SiLU."""
    x = d.pick()
    (y,) = d.node("Sigmoid", [x])
    return d.node("Mul", [x, y])


def arithmetic(d: Drawing) -> Any:
    x = d.pick("fi")
    y = d.alike(x)
    operator = d.of("Add", "Sub", "Mul", "Max", "Min", "Add", "Mul")
    return d.node(operator, [x, y] if d.number(0, 1) else [y, x], exact=True)


def with_constant(d: Drawing) -> Any:
    x = d.pick()
    c = d.stored(np.float32(d.of(0.0, 1.0, -1.0, 0.5, 2.0, 3.0)))
    operator = d.of("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow")
    return d.node(operator, [x, c] if d.number(0, 2) else [c, x], exact=operator not in "DivPow")


def with_weight(d: Drawing) -> Any:
    x = d.pick(least=1)
    axis = d.axis(x, fixed=True)
    shape = [x.size(a) if a == axis else 1 for a in range(axis, x.rank)]
    w = d.stored(d.eighths(*shape))
    return d.node(d.of("Add", "Mul", "Sub", "PRelu"), [x, w], exact=True)


def clipped(d: Drawing) -> Any:
    low, high = d.of((-1.0, 1.0), (0.0, 6.0), (0.5, 0.25), (None, 1.0), (-0.5, None))
    bounds = [None if v is None else d.stored(np.float32(v)) for v in (low, high)]
    while bounds and bounds[-1] is None:
        bounds.pop()
    return d.node("Clip", [d.pick(), *bounds], exact=True)


def compared(d: Drawing) -> Any:
    x = d.pick("fi")
    y = d.alike(x)
    d.need(x.exact and y.exact)
    operator = d.of("Less", "Greater", "Equal", "LessOrEqual", "GreaterOrEqual")
    return d.node(operator, [x, y], exact=True)


def logic(d: Drawing) -> Any:
    x = d.pick("b")
    if d.number(0, 2) == 0:
        return d.node("Not", [x], exact=True)
    return d.node(d.of("And", "Or", "Xor"), [x, d.alike(x)], exact=True)


def selected(d: Drawing) -> Any:
    c, x = d.pick("b"), d.pick("fi")
    y = d.alike(x)
    d.need(broadcast(c, x) and broadcast(c, y))
    return d.node("Where", [c, x, y], exact=True)


def rounded(d: Drawing) -> Any:
    x = d.pick()
    d.need(x.exact)
    return d.node(d.of("Floor", "Ceil", "Round", "Sign"), [x], exact=True)


def cast(d: Drawing) -> Any:
    x = d.pick("fib")
    to = d.of(np.float32, np.int64, np.int32, np.float32, bool, np.uint8, np.float64)
    d.need(x.exact or to in (np.float32, np.float64))
    # What lies outside the range of an unsigned number is not defined.
    d.need(to is not np.uint8 or all((a >= 0).all() and (a < 256).all() for a in x.arrays))
    return d.node("Cast", [x], exact=True, to=helper.np_dtype_to_tensor_dtype(np.dtype(to)))


def permuted(d: Drawing) -> Any:
    x = d.pick("fib", 2)
    return d.node("Transpose", [x], exact=True, perm=[int(i) for i in d.rng.permutation(x.rank)])


def reshaped(d: Drawing) -> Any:
    """Merges neighbours, splits an axis, or flattens, as 0 and -1 say."""
    x = d.pick("fib", 1)
    shape = [0] * x.rank
    form = d.number(0, 3)
    if form == 0 and x.rank > 1:
        at = d.number(0, x.rank - 2)
        fixed = [x.size(a) if x.is_fixed(a) else None for a in range(at + 2, x.rank)]
        d.need(None not in fixed)
        shape = [*shape[:at], -1, *fixed]
    elif form == 1:
        axis = d.axis(x, fixed=True)
        d.need(x.size(axis) > 0)
        part = d.of(*(p for p in range(1, x.size(axis) + 1) if x.size(axis) % p == 0))
        rest = [x.size(a) if x.is_fixed(a) else -1 for a in range(axis + 1, x.rank)]
        shape = [*shape[:axis], part, x.size(axis) // part, *rest]
    elif form == 2:
        shape = [-1]
    else:
        return d.node("Flatten", [x], exact=True, axis=d.number(0, x.rank))
    return d.node("Reshape", [x, d.stored(shape)], exact=True)


def measured(d: Drawing) -> Any:
    """A tensor in the shape of another, computed as exporters compute it."""
    x, y = d.pick("fib", 1), d.pick("fib", 1)
    (shape,) = d.node("Shape", [y], exact=True)
    form = d.number(0, 3)
    if form == 0:
        return d.node("Expand", [x, shape], exact=True)
    if form == 1:
        (one,) = d.node("Gather", [shape, d.stored([d.axis(y)])], exact=True)
        (target,) = d.node("Concat", [one, d.stored([-1])], exact=True, axis=0)
        return d.node("Reshape", [x, target], exact=True)
    if form == 2:
        value = numpy_helper.from_array(np.array([d.of(0.0, 1.5)], np.float32))
        return d.node("ConstantOfShape", [shape], exact=True, value=value)
    (size,) = d.node("Gather", [shape, d.stored(d.axis(y))], exact=True)
    zero, one = d.stored(0), d.stored(1)
    return d.node("Range", [zero, size, one], exact=True)


def squeezed(d: Drawing) -> Any:
    x = d.pick("fib")
    ones = [a for a in range(x.rank) if x.is_fixed(a) and x.size(a) == 1]
    if ones and d.number(0, 1):
        return d.node("Squeeze", [x, d.stored([d.of(*ones)])], exact=True)
    return d.node("Unsqueeze", [x, d.stored([d.number(-x.rank - 1, x.rank)])], exact=True)


def sliced(d: Drawing) -> Any:
    x = d.pick("fib", 1)
    axis = d.axis(x)
    step = d.of(1, 1, 1, 2, -1, -2)
    # "To the end" is the largest number forwards, the smallest backwards; ONNX Runtime also takes
    # the largest backwards.
    open_end = d.of(2**31 - 1, 2**63 - 1) if step > 0 else d.of(-(2**31), -(2**63))
    ends = d.number(-4, 6), d.of(d.number(-4, 6), open_end)
    parts = [d.stored([v]) for v in (*ends, d.of(axis, axis - x.rank), step)]
    return d.node("Slice", [x, *parts], exact=True)


def divided(d: Drawing) -> Any:
    x = d.pick("fib", 1)
    axis = d.axis(x, fixed=True)
    if d.number(0, 1):
        return d.node("Split", [x], 2, exact=True, axis=axis, num_outputs=2)
    first = d.number(0, x.size(axis))
    sizes = d.stored([first, x.size(axis) - first])
    return d.node("Split", [x, sizes], 2, exact=True, axis=axis)


def padded(d: Drawing) -> Any:
    x = d.pick(least=1)
    mode = d.of("constant", "constant", "edge", "reflect", "wrap")
    pads = [d.number(0, 1) for _ in range(2 * x.rank)]
    if mode == "constant" and d.number(0, 2) == 0:
        pads[d.number(0, 2 * x.rank - 1)] = -1
    return d.node("Pad", [x, d.stored(pads)], exact=True, mode=mode)


def joined(d: Drawing) -> Any:
    x = d.pick("fib", 1)
    axis = d.axis(x)
    rest = [a for a in range(x.rank) if a != axis]
    alike = [
        t
        for t in d.tensors
        if t.dtype == x.dtype
        and t.rank == x.rank
        and all(b.shape[a] == c.shape[a] for b, c in zip(t.arrays, x.arrays) for a in rest)
    ]
    parts = [x, *(d.of(*alike) for _ in range(d.number(1, 2)))]
    return d.node("Concat", parts, exact=True, axis=axis)


def tiled(d: Drawing) -> Any:
    x = d.pick("fib", 1)
    return d.node("Tile", [x, d.stored([d.number(1, 2) for _ in range(x.rank)])], exact=True)


def gathered(d: Drawing) -> Any:
    x = d.pick("fib", 1)
    axis = d.axis(x)
    least = min(a.shape[axis] for a in x.arrays)
    d.need(least > 0)
    form = d.number(0, 2)
    if form == 0:
        indices = d.rng.integers(-least, least, d.of((), (2,), (2, 3)))
        return d.node("Gather", [x, d.stored(indices)], exact=True, axis=axis)
    if form == 1:
        i = d.pick("i")
        d.need(all((a < least).all() and (a >= -least).all() for a in i.arrays))
        return d.node("Gather", [x, i], exact=True, axis=axis)
    d.need(all(x.is_fixed(a) for a in range(x.rank)))
    shape = [x.size(a) for a in range(x.rank)]
    indices = d.rng.integers(-least, least, shape)
    if d.number(0, 1):
        return d.node("GatherElements", [x, d.stored(indices)], exact=True, axis=axis)
    indices = np.argsort(d.rng.random(shape), axis=axis)  # each place is written once
    return d.node("ScatterElements", [x, d.stored(indices), x], exact=True, axis=axis)


SMALL_STEPS = (
    *(smooth, smooth, exact, gate, arithmetic, arithmetic, with_constant, with_constant),
    *(with_weight, clipped, compared, logic, selected, rounded, cast),
    *(permuted, permuted, reshaped, reshaped, measured, squeezed, sliced, divided),
    *(padded, joined, tiled, gathered, gathered),
)
