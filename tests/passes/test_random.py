"""Random graphs through the whole optimiser: movement, arithmetic, products in any combination."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.passes.graphs import given, graph, weight
from whet.ir.graph import Graph, Value, constant
from whet.ir.sizes import Size, symbol
from whet.ops.contract import Convolution, MatMul
from whet.ops.elementwise import Abs, Clip, Div, Max, Min, Neg, Relu, Sigmoid, Tanh, Where
from whet.ops.movement import (
    Concat,
    Gather,
    Pad,
    Reverse,
    Slice,
    broadcast_to,
    reshape,
    transpose,
    unsqueeze,
)
from whet.ops.reduce import Cumulative, LayerNorm, Reduce, Softmax, reduce_mean
from whet.passes.check import same_meaning
from whet.passes.pipeline import optimise

MOST_ELEMENTS = 3000
SEEDS = 120


class Drawing:
    """A random graph: each step applies one operator to what there is."""

    def __init__(self, seed: int, batch: Size) -> None:
        self.rng = np.random.default_rng(seed)
        self.batch = batch
        self.names = 0
        first = given("x", batch, *self.sizes(3))
        self.values = [first, given("y", *first.shape)]

    def sizes(self, count: int) -> tuple[int, ...]:
        return tuple(int(self.rng.choice([1, 2, 3, 4, 6])) for _ in range(count))

    def weight(self, *shape: Size) -> Value:
        self.names += 1
        return weight(f"w{self.names}", *shape)

    def pick(self) -> Value:
        return self.values[int(self.rng.integers(max(0, len(self.values) - 3), len(self.values)))]

    def step(self) -> None:
        x = self.pick()
        fn = STEPS[int(self.rng.integers(len(STEPS)))]
        y = fn(self, x)
        if y is not None and y.rank <= 6 and elements(y) <= MOST_ELEMENTS:
            self.values.append(y)

    def axis(self, x: Value, first: int = 0) -> int | None:
        """An axis of known size, or None."""
        known = [i for i in range(first, x.rank) if isinstance(x.shape[i], int)]
        return int(self.rng.choice(known)) if known else None


def elements(x: Value) -> int:
    return math.prod(s if isinstance(s, int) else 3 for s in x.shape)


def unary(d: Drawing, x: Value) -> Value:
    ops = [Relu(), Neg(), Abs(), Sigmoid(), Tanh()]
    return ops[int(d.rng.integers(len(ops)))](x)


def scalar(d: Drawing, x: Value) -> Value:
    c = float(d.rng.choice([0.0, 1.0, -1.0, 2.0, 0.5, 3.0]))
    choices = [x + c, x * c, x - c, c - x, x / (c or 1.0), Max()(x, c), Clip()(x, -1.0, abs(c))]
    return choices[int(d.rng.integers(len(choices)))]


def binary(d: Drawing, x: Value) -> Value:
    alike = [v for v in d.values if v.shape == x.shape]
    other = alike[int(d.rng.integers(len(alike)))]
    return [x + other, x * other, x - other, Min()(x, other), Where()(POSITIVE(x), x, other)][
        int(d.rng.integers(5))
    ]


def POSITIVE(x: Value) -> Value:  # noqa: N802
    from whet.ops.elementwise import Less

    return Less()(0.0, x)


def weighted(d: Drawing, x: Value) -> Value | None:
    axis = d.axis(x)
    if axis is None:
        return None
    w = d.weight(*(s if i == axis else 1 for i, s in enumerate(x.shape) if i >= axis))
    return [x + w, x * w, x - w, Div()(x, w)][int(d.rng.integers(4))]


def permuted(d: Drawing, x: Value) -> Value:
    return transpose(x, *(int(i) for i in d.rng.permutation(x.rank)))


def merged(d: Drawing, x: Value) -> Value | None:
    if x.rank < 2:
        return None
    i = int(d.rng.integers(x.rank - 1))
    return reshape(x, *x.shape[:i], x.shape[i] * x.shape[i + 1], *x.shape[i + 2 :])


def split(d: Drawing, x: Value) -> Value | None:
    axis = d.axis(x)
    if axis is None or x.shape[axis] not in (4, 6, 12, 24, 36):
        return None
    size = x.shape[axis]
    part = int(d.rng.choice([p for p in (2, 3) if size % p == 0]))
    return reshape(x, *x.shape[:axis], part, size // part, *x.shape[axis + 1 :])


def squeezed(d: Drawing, x: Value) -> Value:
    ones = [i for i, s in enumerate(x.shape) if s == 1]
    if not ones or d.rng.random() < 0.4:
        return unsqueeze(x, int(d.rng.integers(x.rank + 1)))
    drop = int(d.rng.choice(ones))
    return reshape(x, *(s for i, s in enumerate(x.shape) if i != drop))


def sliced(d: Drawing, x: Value) -> Value | None:
    axis = d.axis(x)
    if axis is None or x.shape[axis] < 2:
        return None
    size = int(x.shape[axis])  # type: ignore[call-overload]
    step = int(d.rng.choice([1, 1, 2, -1]))
    count = int(d.rng.integers(1, max(2, size // abs(step))))
    low = int(d.rng.integers(0, size - (count - 1) * abs(step)))
    start = low if step > 0 else low + (count - 1) * -step
    starts, sizes, steps = [0] * x.rank, list(x.shape), [1] * x.rank
    starts[axis], sizes[axis], steps[axis] = start, count, step
    return Slice(tuple(starts), tuple(sizes), tuple(steps))(x)


def padded(d: Drawing, x: Value) -> Value | None:
    axis = d.axis(x)
    if axis is None:
        return None
    before = tuple(int(d.rng.integers(2)) if i == axis else 0 for i in range(x.rank))
    return Pad(before, before[::-1] if x.rank == 1 else before)(x, float(d.rng.choice([0.0, 1.0])))


def joined(d: Drawing, x: Value) -> Value | None:
    axis = d.axis(x)
    alike = [v for v in d.values if v.shape == x.shape]
    return None if axis is None else Concat(axis)(x, alike[int(d.rng.integers(len(alike)))])


def gathered(d: Drawing, x: Value) -> Value | None:
    axis = d.axis(x)
    if axis is None:
        return None
    shape = [(), (2,), (2, 2)][int(d.rng.integers(3))]
    size = int(x.shape[axis])  # type: ignore[call-overload]
    return Gather(axis)(x, constant(d.rng.integers(-size, size, shape)))


def reduced(d: Drawing, x: Value) -> Value | None:
    axes = [i for i, s in enumerate(x.shape) if isinstance(s, int) and d.rng.random() < 0.5]
    if not axes:
        return None
    kind = str(d.rng.choice(["sum", "max", "min"]))
    return Reduce(kind, tuple(axes))(x) if d.rng.random() < 0.6 else reduce_mean(x, tuple(axes))


def along(d: Drawing, x: Value) -> Value | None:
    axis = d.axis(x)
    if axis is None:
        return None
    return [Softmax(axis), Cumulative("sum", axis), Reverse((axis,))][int(d.rng.integers(3))](x)


def normalized(d: Drawing, x: Value) -> Value | None:
    if not x.rank or not isinstance(x.shape[-1], int):
        return None
    return LayerNorm(1, 1e-2)(x, d.weight(x.shape[-1]), d.weight(x.shape[-1]))


def multiplied(d: Drawing, x: Value) -> Value | None:
    if x.rank < 2 or not isinstance(x.shape[-1], int):
        return None
    return MatMul()(x, d.weight(x.shape[-1], int(d.rng.choice([1, 3, 4]))))


def convolved(d: Drawing, x: Value) -> Value | None:
    """On channels first, as an importer writes it."""
    if x.rank != 4 or not all(isinstance(s, int) for s in x.shape[1:]):
        return None
    w = d.weight(int(d.rng.choice([2, 4])), 1, 1, x.shape[1])
    y = Convolution((1, 1), (1, 1), (0, 0), (0, 0))(transpose(x, 0, 2, 3, 1), w)
    return transpose(y, 0, 3, 1, 2)


def stretched(d: Drawing, x: Value) -> Value:
    shape = tuple(2 if s == 1 and d.rng.random() < 0.5 else s for s in x.shape)
    return broadcast_to(x, *shape) if d.rng.random() < 0.5 else broadcast_to(x, 2, *shape)


STEPS = [
    *(unary, scalar, binary, weighted, weighted),
    *(permuted, permuted, permuted, merged, split, squeezed),
    *(sliced, padded, joined, gathered, stretched),
    *(reduced, along, normalized, multiplied, convolved, convolved),
]


def drawn(seed: int) -> Graph:
    d = Drawing(seed, symbol("n", 1) if seed % 2 else 2)
    for _ in range(25):
        d.step()
    return graph(*dict.fromkeys(d.values[-2:]))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_means_the_same(seed):
    before = drawn(seed)
    seen = {}
    optimise(before, lambda name, g: seen.update({f"{len(seen)} {name}": g}))
    assert same_meaning(before, seen, seed=seed) >= 1
