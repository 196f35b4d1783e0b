"""Random graphs: what an importer and passes could have made, over known and named sizes."""

import random
from itertools import pairwise

import numpy as np
from hypothesis import strategies as st

from whet.errors import Error
from whet.ir.graph import Graph, Guard, Input, Value, Weight, constant, make
from whet.ir.sizes import Size, ceil_divide, maximum, minimum, symbol
from whet.ir.types import NUMPY_DTYPES, TensorType
from whet.ops.contract import MatMul
from whet.ops.elementwise import Add, Cast, Div, Exp, Less, Mul, Where
from whet.ops.movement import Broadcast, Concat, Gather, Pad, Reshape, Slice, Transpose
from whet.ops.reduce import ArgReduce, LayerNorm, Reduce, Softmax

NAMES = ["n", "m", "batch size", "κ", ""]


@st.composite
def sizes(draw) -> Size:
    """A known size, or an expression over the names."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    size: Size = rng.choice([1, 2, 3, 8])
    while rng.random() < 0.4:
        other = symbol(rng.choice(NAMES), rng.choice([0, 1, 4]), rng.choice([None, 9, size]))
        size = rng.choice(COMBINATIONS)(size, other)
    return size


COMBINATIONS = [
    lambda a, b: a + b,
    lambda a, b: a * b,
    lambda a, b: ceil_divide(a + b, 3),
    lambda a, b: (a * 4 + b) % 5,
    lambda a, b: minimum(a, b, 7),
    lambda a, b: maximum(a, b),
]


@st.composite
def graphs(draw) -> Graph:
    """A graph of up to 40 operators with inputs, weights, constants, guards and origins."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    shapes = [tuple(draw(st.lists(sizes(), max_size=4))) for _ in range(3)]
    inputs = tuple(
        make(Input(f"input {i}", TensorType(rng.choice(["float32", "bool", "int64"]), shape)), ())[
            0
        ]
        for i, shape in enumerate(shapes)
    )
    values: list[Value] = list(inputs)
    for i in range(draw(st.integers(0, 40))):
        values.extend(_step(rng, values, i))
    outputs = tuple(rng.choice(values) for _ in range(rng.randrange(1, 4)))
    sizes_used = [s for v in values if isinstance(v.type, TensorType) for s in v.shape]
    guards = [Guard(a, b, "some node", rng.random() < 0.5) for a, b in pairwise(sizes_used)]
    origins = {v: (f"node {rng.randrange(20)}",) * rng.randrange(3) for v in values}
    return Graph(
        inputs, outputs, tuple(f"output {i}" for i in range(len(outputs))), tuple(guards), origins
    )


def _step(rng: random.Random, values: list[Value], number: int) -> tuple[Value, ...]:
    """The results of one more operator on some of the values; none where it does not fit."""
    x, y, z = (rng.choice(values) for _ in range(3))
    choices = [
        lambda: Add()(x, y),
        lambda: Mul()(x, constant(rng.choice([0.0, -0.0, 1.5, float("nan")]), "float32")),
        lambda: Div()(x, y),
        lambda: Exp()(x),
        lambda: Where()(Less()(x, y), x, z),
        lambda: Cast(rng.choice([d for d in NUMPY_DTYPES if d != "string"]))(x),
        lambda: MatMul()(x, y),
        lambda: Transpose(tuple(rng.sample(range(x.rank), x.rank)))(x),
        lambda: Reshape((*x.shape, 1))(x),
        lambda: Broadcast((2, *x.shape))(x),
        lambda: Concat(0)(x, y),
        lambda: Gather(rng.randrange(-1, 1))(x, y),
        lambda: Pad((1,) * x.rank, (0,) * x.rank, "edge")(x, Cast(x.dtype)(constant(0.0))),
        lambda: Slice((0,) * x.rank, (1,) * x.rank, (1,) * x.rank)(x),
        lambda: Reduce(rng.choice(["sum", "max"]), (0,))(x),
        lambda: ArgReduce("max", 0, last=True)(x),
        lambda: Softmax(-1)(x),
        lambda: LayerNorm(1, rng.random())(x, y, rng.choice([None, z])),
        lambda: make(Weight(f"weight {number % 5}", TensorType("float32", (number + 1, 3))), ())[0],
        lambda: constant(np.full([number], number, rng.choice(["uint8", "float16", "int64"]))),
    ]
    try:
        made = rng.choice(choices)()
    except (Error, IndexError, AttributeError):
        return ()
    return made.siblings


def networks(rng: random.Random, layers: int) -> Graph:
    """A transformer-like stack of `layers` blocks of ten operators each, all different."""
    x = first = make(Input("x", TensorType("float32", (1, 128, 768))), ())[0]
    for layer in range(layers):
        w = make(Weight(f"w{layer}", TensorType("float32", (768, 768))), ())[0]
        b = make(Weight(f"b{layer}", TensorType("float32", (768,))), ())[0]
        heads = Transpose((0, 2, 1, 3))(Reshape((1, 128, 12, 64))(MatMul()(x, w) + b))
        y = Reshape((1, 128, 768))(Transpose((0, 2, 1, 3))(heads))
        x = LayerNorm()(x + y, b, b) * rng.random()
    return Graph((first,), (x,), ("y",))
