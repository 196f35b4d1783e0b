"""Recurrent layers, suppression and sorting with random inputs, and what they must give."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from whet.ir.evaluate import evaluate
from whet.ir.graph import Graph, Input, make
from whet.ir.types import NUMPY_DTYPES, TensorType, dtype_name
from whet.ops.recurrent import DEFAULTS, GATES, Recurrent
from whet.ops.select import Order, Suppression

SIGMOID, TANH = ("sigmoid", 0.0, 0.0), ("tanh", 0.0, 0.0)
ACTIVATIONS = {"lstm": (SIGMOID, TANH, TANH), "gru": (SIGMOID, TANH), "rnn": (TANH,)}
BOUNDS = {"float16": 4e-3, "bfloat16": 3e-2, "float32": 1e-5}


@dataclass
class Layer:
    """A graph of one operator, and arrays for it."""

    name: str
    graph: Graph
    arrays: list[np.ndarray]

    def wanted(self) -> list[np.ndarray]:
        """What `reference` gives."""
        return evaluate(self.graph, dict(zip(self.graph.inputs, self.arrays)))

    def is_right(self, got: list[np.ndarray]) -> bool:
        """Whether results are close, or, of boxes, the very same."""
        want = self.wanted()
        if len(want) == 1 and want[0].dtype == np.int64:
            return bool((got[0] == want[0]).all())
        if self.graph.outputs[0].dtype == "int64":
            (count,) = want[1]
            return bool(got[1] == count and (got[0][:count] == want[0][:count]).all())
        bound = BOUNDS[self.graph.outputs[0].dtype]
        both = zip(got, want, strict=True)
        pairs = [(a.astype(np.float64), b.astype(np.float64)) for a, b in both]
        return all(np.abs(a - b).max() <= bound for a, b in pairs)


def layer(name: str, op: Any, arrays: list[np.ndarray | None]) -> Layer:
    """A graph that has an input for each array that is there."""
    inputs = [
        None if a is None else make(Input(f"x{n}", TensorType(dtype_name(a.dtype), a.shape)), ())[0]
        for n, a in enumerate(arrays)
    ]
    given = tuple(i for i in inputs if i is not None)
    outputs = op(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    names = tuple(f"y{n}" for n in range(len(outputs)))
    return Layer(name, Graph(given, outputs, names), [a for a in arrays if a is not None])


def recurrent(
    rng: np.random.Generator, kind: str, units: int, batch: int, dtype: str = "float32", **more: Any
) -> Layer:
    """A layer with every option by chance; what is given is certain."""
    steps = int(rng.integers(5, 8))

    def numbers(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(NUMPY_DTYPES[dtype])

    def maybe(array: np.ndarray, wanted: bool = True) -> np.ndarray | None:
        return array if wanted and rng.random() < 0.5 else None

    weight = (numbers(units, GATES[kind] * units) / units**0.5).astype(NUMPY_DTYPES[dtype])
    arrays = [
        numbers(steps, batch, GATES[kind] * units),
        weight,
        numbers(batch, units),
        numbers(batch, units) if kind == "lstm" else None,
        maybe(numbers(units), kind == "gru" and more.get("reset_after", False)),
        maybe(numbers(3, units), kind == "lstm"),
        maybe(rng.integers(0, steps + 1, batch).astype(np.int32)),
    ]
    options = {"activations": ACTIVATIONS[kind], "backward": bool(rng.integers(2)), **more}
    name = f"{kind}-{units}x{batch}-{dtype}"
    return layer(name, Recurrent(kind, **options), arrays)


def recurrents(rng: np.random.Generator, wide: int = 70) -> Iterator[Layer]:
    """Weights that registers hold, and a weight so `wide` that they do not."""
    for units in (5, 16, wide):
        yield recurrent(rng, "lstm", units, 3, clip=0.9, coupled=bool(rng.integers(2)))
        yield recurrent(rng, "gru", units, 2, reset_after=True)
        yield recurrent(rng, "gru", units, 2)
    yield recurrent(rng, "lstm", 20, 2, "float16")
    yield recurrent(rng, "gru", 100, 1, "bfloat16", reset_after=True)
    grows = (("affine", 1.5, 0.5),)
    yield recurrent(rng, "rnn", wide + 30, 2, activations=grows, clip=2.0)
    for name in ("relu", "leakyrelu", "hardsigmoid", "softplus", "elu"):
        yield recurrent(rng, "rnn", 9, 2, activations=((name, *DEFAULTS.get(name, (0, 0))),))


def suppression(
    rng: np.random.Generator, batch: int, classes: int, count: int, center: bool, limits: int
) -> Layer:
    """Boxes that overlap a lot, with some equal scores, and a NaN, among them."""
    corners = np.sort(rng.uniform(0, 1, (batch, count, 2, 2)), 2).reshape(batch, count, 4)
    flipped = corners[..., [2, 3, 0, 1]]
    boxes = np.where(rng.integers(0, 2, (batch, count, 1)), corners, flipped).astype(np.float32)
    scores = np.round(rng.uniform(-1, 1, (batch, classes, count)), 2).astype(np.float32)
    scores[0, 0, 1] = np.nan
    most = np.array([rng.integers(1, count)])
    others = [np.array([rng.uniform(0.1, 0.5)], np.float32), np.array([-0.2], np.float32)]
    name = f"suppression-{batch}x{classes}x{count}-{limits}"
    return layer(name, Suppression(center), [boxes, scores, *[most, *others][:limits]])


def suppressions(rng: np.random.Generator) -> Iterator[Layer]:
    """With no limit nothing is kept."""
    for limits in (0, 1, 2, 3):
        yield suppression(rng, 2, 3, 50, bool(rng.integers(2)), limits)
    yield suppression(rng, 1, 1, 1500, False, 3)
    yield suppression(rng, 1, 2, 9, True, 3)


def order(rng: np.random.Generator, *shape: int, dtype: str = "int64", few: int = 0) -> Layer:
    """Lines to sort: any numbers of the dtype, or only a few, so that most are equal."""
    limits = np.iinfo(dtype)
    low, high = (0, few) if few else (limits.min, limits.max)
    keys = rng.integers(low, high, shape, dtype=dtype, endpoint=True)
    return layer(f"order-{'x'.join(map(str, shape))}-{dtype}-{few}", Order(), [keys])


def orders(rng: np.random.Generator) -> Iterator[Layer]:
    """Lines of one element, of one run, and of runs that are merged once and twice."""
    for shape in ((2, 1), (2, 17), (2, 129), (2, 257), (2049,), (3, 2, int(rng.integers(2, 300)))):
        dtype = str(rng.choice(["int32", "int64"]))
        yield order(rng, *shape, dtype=dtype, few=int(rng.choice([0, 3, 1000])))
