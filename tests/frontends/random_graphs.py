"""Random ONNX graphs of mixed operators, grown node by node with ONNX Runtime as the judge.

Each tensor is known for two bindings of the named sizes `n` and `m`, so that what is drawn holds
for more than one set of sizes. A node that ONNX Runtime refuses, or whose results are not finite,
is drawn again; the expected outputs are those of the nodes one by one, without any fusion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

OPSET = 20
BINDINGS = ({"n": 2, "m": 5}, {"n": 3, "m": 1})
MOST_ELEMENTS = 6000
LARGEST = 1e4

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Tensor:
    """A named tensor's contents for each binding; `exact` where rounding cannot change them."""

    name: str
    arrays: tuple[Array, ...]
    exact: bool

    @property
    def dtype(self) -> np.dtype:
        return self.arrays[0].dtype

    @property
    def rank(self) -> int:
        return self.arrays[0].ndim

    def is_fixed(self, axis: int) -> bool:
        return len({x.shape[axis] for x in self.arrays}) == 1

    def size(self, axis: int) -> int:
        return self.arrays[0].shape[axis]


@dataclass
class Model:
    """What has been drawn: inputs, initializers, nodes, and all tensors by their names."""

    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    given: list[Tensor] = field(default_factory=list)
    stored: list[onnx.TensorProto] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    made: list[Tensor] = field(default_factory=list)

    def proto(self, outputs: Sequence[Tensor]) -> onnx.ModelProto:
        """The model whose outputs are the tensors; nodes that these do not need are left out."""
        needed, nodes = {t.name for t in outputs}, []
        for node in reversed(self.nodes):
            if needed & set(node.output):
                nodes.append(node)
                needed |= set(node.input) | captured(node)
        results = [onnx.ValueInfoProto(name=t.name) for t in outputs]
        inputs = [i for i in self.inputs if i.name in needed]
        stored = [s for s in self.stored if s.name in needed]
        graph = helper.make_graph(nodes[::-1], "drawn", inputs, results, stored)
        return wrapped(graph)

    def feeds(self, binding: int, model: onnx.ModelProto) -> dict[str, Array]:
        named = {i.name for i in model.graph.input}
        return {t.name: t.arrays[binding] for t in self.given if t.name in named}


def captured(node: onnx.NodeProto) -> set[str]:
    """The outer names that the node's inner graphs may read."""
    inner = [a.g for a in node.attribute if a.HasField("g")]
    return {name for g in inner for n in g.node for name in n.input} | {
        out.name for g in inner for out in g.output
    }


def wrapped(graph: onnx.GraphProto) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


class Rejected(Exception):  # noqa: N818
    """A step that does not fit what there is."""


class Drawing:
    """A model that grows by a node at a time."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.model = Model()
        self.tensors: list[Tensor] = []
        self.inputs()

    # What steps draw with.

    def number(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def of(self, *items: Any) -> Any:
        return items[self.number(0, len(items) - 1)]

    def need(self, condition: bool) -> None:
        if not condition:
            raise Rejected

    def eighths(self, *shape: int) -> Array:
        """Numbers whose sums and products float32 holds exactly."""
        return (self.rng.integers(-16, 17, shape) / 8).astype(np.float32)

    def pick(self, kinds: str = "f", least: int = 0) -> Tensor:
        """A tensor of such dtypes, more likely one of the last."""
        fitting = [t for t in self.tensors if t.dtype.kind in kinds and t.rank >= least]
        self.need(bool(fitting))
        recent = fitting[-4:] if self.rng.random() < 0.7 else fitting
        return self.of(*recent)

    def alike(self, x: Tensor) -> Tensor:
        """Another tensor of the same dtype that broadcasts with it."""
        fitting = [t for t in self.tensors if t.dtype == x.dtype and broadcast(t, x)]
        return self.of(*fitting)

    def axis(self, x: Tensor, fixed: bool = False) -> int:
        axes = [a for a in range(x.rank) if not fixed or x.is_fixed(a)]
        self.need(bool(axes))
        return self.of(*axes)

    # What steps make.

    def name(self) -> str:
        drawn = self.model
        return f"t{len(drawn.inputs) + len(drawn.stored) + len(drawn.made)}"

    def inputs(self) -> None:
        for shape in (("n", 4, 6), ("n", 3, 8, 8), ("n", "m", 4), (4, 6), (), ("m",)):
            sizes = [tuple(b.get(s, s) for s in shape) for b in BINDINGS]
            self.input(shape, tuple(self.eighths(*s) for s in sizes))
        counts = tuple(self.rng.integers(0, 4, (b["n"], 4)) for b in BINDINGS)
        self.input(("n", 4), counts)

    def input(self, shape: Sequence[Any], arrays: tuple[Array, ...]) -> None:
        t = Tensor(self.name(), arrays, True)
        info = helper.make_tensor_value_info(t.name, element_type(arrays[0]), shape)
        self.model.inputs.append(info)
        self.model.given.append(t)
        self.tensors.append(t)

    def stored(self, array: Any, dtype: Any = np.int64) -> Tensor:
        """An initializer."""
        contents = array if isinstance(array, np.ndarray | np.generic) else np.array(array, dtype)
        contents = np.asarray(contents)
        t = Tensor(self.name(), (contents,) * len(BINDINGS), True)
        self.model.stored.append(numpy_helper.from_array(contents, t.name))
        return t

    def node(
        self,
        operator: str,
        inputs: Sequence[Tensor | None],
        outputs: int = 1,
        exact: bool = False,
        **attributes: Any,
    ) -> list[Tensor]:
        """Adds a node, if ONNX Runtime runs it; its outputs may be picked from now on."""
        reads = [t for t in inputs if t is not None]
        names = [t.name if t else "" for t in inputs]
        base = self.name()
        outs = [f"{base}" if i == 0 else f"{base}_{i}" for i in range(outputs)]
        domain = attributes.pop("domain", "")
        proto = helper.make_node(operator, names, outs, f"{operator}_{base}", domain=domain)
        proto.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
        outer = {t.name: t for t in self.tensors if t.name in captured(proto)}
        found = [
            runtime([proto], {**{t.name: t.arrays[b] for t in (*reads, *outer.values())}}, outs)
            for b in range(len(BINDINGS))
        ]
        kept = exact and all(t.exact for t in (*reads, *outer.values()))
        found_of = [tuple(f[i] for f in found) for i in range(outputs)]
        made = [Tensor(o, xs, kept and on_grid(xs)) for o, xs in zip(outs, found_of)]
        self.need(all(fits(x) for t in made for x in t.arrays))
        self.model.nodes.append(proto)
        self.model.made += made
        self.tensors += made
        return made


def broadcast(a: Tensor, b: Tensor) -> bool:
    try:
        for x, y in zip(a.arrays, b.arrays):
            np.broadcast_shapes(x.shape, y.shape)
    except ValueError:
        return False
    return True


def fits(x: Array) -> bool:
    """Whether a result is small enough to go on with, in size and in its numbers."""
    if x.size > MOST_ELEMENTS or x.ndim > 6:
        return False
    if x.dtype.kind == "f":
        return bool(np.isfinite(x).all() and (np.abs(x) < LARGEST).all())
    return bool((np.abs(x.astype(np.int64)) < LARGEST).all()) if x.dtype.kind in "iu" else True


def on_grid(arrays: Sequence[Array]) -> bool:
    """Whether float32 had room for all digits, with some to spare for partial sums."""
    return all(
        bool((np.abs(x) < 2**9).all() and (x * 2**12 == np.rint(x * 2**12)).all())
        for x in arrays
        if x.dtype.kind == "f"
    )


def element_type(x: Array) -> int:
    return helper.np_dtype_to_tensor_dtype(x.dtype)


def runtime(
    nodes: list[onnx.NodeProto], feeds: dict[str, Array], outputs: Sequence[str]
) -> list[Array]:
    """What ONNX Runtime makes of the nodes, as they are written; raises Rejected."""
    import onnxruntime as ort

    inputs = [
        helper.make_tensor_value_info(name, element_type(x), [None] * x.ndim)
        for name, x in feeds.items()
    ]
    results = [onnx.ValueInfoProto(name=name) for name in outputs]
    model = wrapped(helper.make_graph(nodes, "one", inputs, results))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = ort.InferenceSession(model.SerializeToString(), options)
        return [np.asarray(x) for x in session.run(None, feeds)]
    except Exception as error:  # its errors have no common class
        raise Rejected from error


Step = Callable[[Drawing], Any]

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


def reduced(d: Drawing) -> Any:
    x = d.pick("f", 1)
    axes = [a for a in range(x.rank) if d.number(0, 1)] or [d.number(0, x.rank - 1)]
    kind = d.of("Sum", "Mean", "Max", "Min", "L2", "LogSumExp", "SumSquare", "Prod", "L1")
    d.need(all(array.size for array in x.arrays))  # nothing has no maximum
    return d.node(
        f"Reduce{kind}",
        [x, d.stored(axes)],
        exact=kind in ("Sum", "Max", "Min", "L1"),
        keepdims=d.number(0, 1),
    )


def best(d: Drawing) -> Any:
    x = d.pick("f", 1)
    d.need(x.exact)
    axis = d.axis(x)
    d.need(all(a.shape[axis] for a in x.arrays))
    operator = d.of("ArgMax", "ArgMin")
    return d.node(operator, [x], exact=True, axis=axis, keepdims=d.number(0, 1))


def along(d: Drawing) -> Any:
    x = d.pick("f", 1)
    operator = d.of("Softmax", "LogSoftmax", "Softmax", "LpNormalization")
    return d.node(operator, [x], axis=d.axis(x))


def cumulated(d: Drawing) -> Any:
    x = d.pick("f", 1)
    attributes = {"exclusive": d.number(0, 1), "reverse": d.number(0, 1)}
    return d.node("CumSum", [x, d.stored(d.axis(x))], exact=True, **attributes)


def sorted_(d: Drawing) -> Any:
    """The first of distinct values, so that ties do not matter."""
    x = d.pick("f", 1)
    d.need(x.exact)
    axis = d.axis(x)
    d.need(all(a.shape[axis] for a in x.arrays))
    least = min(a.shape[axis] for a in x.arrays)
    k = d.stored([d.number(1, least)])
    values, _ = d.node("TopK", [x, k], 2, exact=True, axis=axis, largest=d.number(0, 1))
    d.tensors.pop()  # the places, which ties leave open
    d.model.made.pop()
    return values


def normalized(d: Drawing) -> Any:
    x = d.pick("f", 1)
    axis = x.rank - 1
    d.need(x.is_fixed(axis))
    w, b = (d.stored(d.eighths(x.size(axis))) for _ in range(2))
    return d.node("LayerNormalization", [x, w, b], axis=-1, epsilon=0.01)


def written_norm(d: Drawing) -> Any:
    """A layer norm in the words of exporters."""
    x = d.pick("f", 1)
    axes = d.stored([-1])
    d.need(all(a.shape[-1] for a in x.arrays))
    (mean,) = d.node("ReduceMean", [x, axes])
    (centred,) = d.node("Sub", [x, mean])
    (square,) = d.node("Mul", [centred, centred])
    (variance,) = d.node("ReduceMean", [square, axes])
    (added,) = d.node("Add", [variance, d.stored(np.float32(0.01))])
    (root,) = d.node("Sqrt", [added])
    return d.node("Div", [centred, root])


def multiplied(d: Drawing) -> Any:
    x = d.pick("f", 1)
    d.need(x.is_fixed(x.rank - 1))
    w = d.stored(d.eighths(x.size(x.rank - 1), d.number(1, 17)))
    (y,) = d.node("MatMul", [x, w], exact=True)
    return d.node("Add", [y, d.stored(d.eighths(w.size(1)))], exact=True) if d.number(0, 1) else y


def of_two(d: Drawing) -> Any:
    x = d.pick("f", 2)
    perm = [*range(x.rank - 2), x.rank - 1, x.rank - 2]
    (y,) = d.node("Transpose", [x], exact=True, perm=perm)
    return d.node("MatMul", [x, y] if d.number(0, 1) else [y, x], exact=True)


def general(d: Drawing) -> Any:
    x = d.pick("f", 2)
    d.need(x.rank == 2)
    trans = d.number(0, 1)
    d.need(x.is_fixed(0 if trans else 1))
    w = d.stored(d.eighths(x.size(0 if trans else 1), 5))
    c = d.of(None, d.stored(d.eighths(5)), d.stored(d.eighths(1)))
    return d.node(
        "Gemm",
        [x, w, c] if c else [x, w],
        exact=True,
        transA=trans,
        alpha=d.of(1.0, 0.5),
        beta=d.of(1.0, 2.0),
    )


def attended(d: Drawing) -> Any:
    """Softmax of a product by another, of three dimensions."""
    x = d.pick("f", 3)
    d.need(x.rank == 3 and x.is_fixed(2))
    width = x.size(2)
    q, k, v = (d.node("MatMul", [x, d.stored(d.eighths(width, 4) / 4)])[0] for _ in range(3))
    (turned,) = d.node("Transpose", [k], perm=[0, 2, 1])
    (scores,) = d.node("MatMul", [q, turned])
    (scaled,) = d.node("Mul", [scores, d.stored(np.float32(0.5))])
    (weights,) = d.node("Softmax", [scaled], axis=-1)
    return d.node("MatMul", [weights, v])


def convolved(d: Drawing) -> Any:
    x = d.pick("f", 3)
    d.need(x.rank in (3, 4) and x.is_fixed(1) and x.size(1) > 0)
    channels, rank = x.size(1), x.rank - 2
    group = d.of(1, channels)
    out = group * d.number(1, 4) if group == channels else d.of(1, 3, 8, 16, 17)
    kernel = [d.of(1, 1, 2, 3) for _ in range(rank)]
    w = d.stored(d.eighths(out, channels // group, *kernel))
    inputs = [x, w, *([d.stored(d.eighths(out))] if d.number(0, 1) else [])]
    attributes: dict[str, Any] = {"group": group, "strides": [d.of(1, 1, 2) for _ in range(rank)]}
    if d.number(0, 1):
        attributes["pads"] = [d.number(0, 1) for _ in range(2 * rank)]
    (y,) = d.node("Conv", inputs, exact=True, **attributes)
    if d.number(0, 1):
        parts = [d.stored(d.eighths(out)) for _ in range(3)]
        variance = d.stored(np.abs(d.eighths(out)) + np.float32(0.5))
        (y,) = d.node("BatchNormalization", [y, *parts, variance], epsilon=0.01)
    if d.number(0, 1):
        y = d.node(d.of("Relu", "Sigmoid", "HardSwish"), [y])[0]
    return y


def pooled(d: Drawing) -> Any:
    x = d.pick("f", 3)
    d.need(x.rank in (3, 4) and all(a.size for a in x.arrays))
    rank = x.rank - 2
    if d.number(0, 2) == 0:
        return d.node(d.of("GlobalAveragePool", "GlobalMaxPool"), [x])
    attributes: dict[str, Any] = {
        "kernel_shape": [d.of(1, 2, 3) for _ in range(rank)],
        "strides": [d.of(1, 2) for _ in range(rank)],
        "ceil_mode": d.number(0, 1),
    }
    operator = d.of("MaxPool", "AveragePool")
    # A window that is larger than the axis is refused, where ONNX Runtime gives no elements.
    widest = zip(attributes["kernel_shape"], range(2, x.rank))
    d.need(all(k <= a.shape[axis] for k, axis in widest for a in x.arrays))
    if operator == "AveragePool":
        attributes["count_include_pad"] = d.number(0, 1)
    return d.node(operator, [x], exact=operator == "MaxPool", **attributes)


def resized(d: Drawing) -> Any:
    x = d.pick("f", 4)
    d.need(x.rank == 4)
    scales = d.stored(np.array([1, 1, d.of(1, 2), d.of(1, 2)], np.float32))
    mode = d.of("nearest", "linear")
    return d.node(
        "Resize", [x, None, scales], mode=mode, coordinate_transformation_mode="asymmetric",
        nearest_mode="floor", exact=mode == "nearest",
    )  # fmt: skip


def shuffled(d: Drawing) -> Any:
    x = d.pick("f", 4)
    d.need(x.rank == 4)
    operator = d.of("DepthToSpace", "SpaceToDepth")
    return d.node(operator, [x], exact=True, blocksize=2)


def summed(d: Drawing) -> Any:
    x = d.pick("f", 2)
    letters = "abcdef"[: x.rank]
    kept = "".join(c for c in d.rng.permutation(list(letters)) if d.number(0, 2))
    return d.node("Einsum", [x], exact=True, equation=f"{letters}->{kept}")


def found(d: Drawing) -> Any:
    """Places and elements whose number depends on data."""
    x = d.pick("fib", 1)
    d.need(x.exact and x.rank <= 3)
    form = d.number(0, 2)
    if form == 0:
        return d.node("NonZero", [x], exact=True)
    if form == 1:
        c = d.pick("b", 1)
        axis = d.axis(x)
        d.need(c.rank == 1 and all(a.size <= b.shape[axis] for a, b in zip(c.arrays, x.arrays)))
        return d.node("Compress", [x, c], exact=True, axis=axis)
    d.need(x.dtype.kind == "f" or x.dtype == np.int64)
    return d.node("Unique", [x], exact=True, sorted=1)


def chosen(d: Drawing) -> Any:
    """One of two branches, which read what is outside."""
    c, x = d.pick("b"), d.pick("f")
    d.need(c.exact)
    if any(a.size != 1 for a in c.arrays):
        d.need(all(a.size for a in c.arrays))
        (c,) = d.node("Cast", [c], exact=True, to=onnx.TensorProto.FLOAT)
        (c,) = d.node("ReduceMax", [c], exact=True, keepdims=0)
        (c,) = d.node("Cast", [c], exact=True, to=onnx.TensorProto.BOOL)
    y = d.alike(x)
    branches = []
    for operator, reads in ((d.of("Neg", "Relu", "Tanh"), [x]), (d.of("Add", "Mul"), [x, y])):
        inner = helper.make_node(operator, [t.name for t in reads], ["inner"])
        result = [onnx.ValueInfoProto(name="inner")]
        branches.append(helper.make_graph([inner], "branch", [], result))
    return d.node("If", [c], then_branch=branches[0], else_branch=branches[1])


def repeated(d: Drawing) -> Any:
    """A loop whose state goes through a few rounds, and whose rounds are stacked."""
    x = d.pick("f")
    count = d.of(d.stored(d.number(0, 3)), d.pick("i"))
    d.need(all(a.size == 1 and a.ndim == 0 for a in count.arrays) and count.dtype == np.int64)
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node(d.of("Sin", "Relu", "Neg"), ["state"], ["turned"]),
            helper.make_node("Add", ["turned", x.name], ["next"]),
            helper.make_node("Identity", ["next"], ["seen"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", onnx.TensorProto.INT64, []),
            helper.make_tensor_value_info("go", onnx.TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", onnx.TensorProto.FLOAT, None),
        ],
        [onnx.ValueInfoProto(name=n) for n in ("go_on", "next", "seen")],
    )
    d.need(all(int(a) > 0 for a in count.arrays))  # the shape of no rounds is not known
    return d.node("Loop", [count, d.stored(np.array(True)), x], 2, body=body)


def quantized(d: Drawing) -> Any:
    """Through eight bits and back, by powers of two, so that nothing is near a half."""
    x = d.pick("f", 1)
    d.need(x.exact and x.dtype == np.float32)
    kind = d.of(np.uint8, np.int8)
    scale, zero = d.stored(np.float32(d.of(0.125, 0.25))), d.stored(kind(d.number(0, 9)))
    (codes,) = d.node("QuantizeLinear", [x, scale, zero], exact=True)
    return d.node("DequantizeLinear", [codes, scale, zero], exact=True)


def of_codes(d: Drawing) -> Any:
    """A product or convolution between quantise and dequantise, as quantised models write it."""
    (x,) = quantized(d)
    d.need(x.rank >= 2)
    scale, zero = d.stored(np.float32(0.25)), d.stored(np.int8(0))
    channels = 1 if x.rank == 4 else x.rank - 1
    d.need(x.is_fixed(channels) and x.size(channels) > 0)
    out = d.of(3, 8, 17)
    shape = (out, x.size(1), 1, 1) if x.rank == 4 else (x.size(channels), out)
    codes = d.stored(d.rng.integers(-8, 9, shape).astype(np.int8))
    (w,) = d.node("DequantizeLinear", [codes, scale, zero], exact=True)
    (y,) = d.node("Conv" if x.rank == 4 else "MatMul", [x, w], exact=True)
    if d.number(0, 1):
        (y,) = d.node("Relu", [y], exact=True)
    wide = d.stored(np.float32(2.0))
    d.need(y.exact and not any((a % 2 == 1).any() for a in y.arrays))  # halves go to even
    (codes,) = d.node("QuantizeLinear", [y, wide, zero], exact=True)
    return d.node("DequantizeLinear", [codes, wide, zero], exact=True)


def recurrent(d: Drawing) -> Any:
    """A layer that turns [steps, batch, width] into its states."""
    x = d.pick("f", 3)
    d.need(x.rank == 3 and x.is_fixed(2) and all(a.size for a in x.arrays))
    kind, gates = d.of(("LSTM", 4), ("GRU", 3), ("RNN", 1))
    direction, hidden = d.of("forward", "reverse", "bidirectional"), d.of(1, 4, 9)
    count = 2 if direction == "bidirectional" else 1
    w = d.stored(d.eighths(count, gates * hidden, x.size(2)) / 4)
    r = d.stored(d.eighths(count, gates * hidden, hidden) / 4)
    y, _ = d.node(kind, [x, w, r], 2, direction=direction, hidden_size=hidden)
    return d.node("Squeeze", [y, d.stored([1])]) if count == 1 else y


def scattered(d: Drawing) -> Any:
    """Rows of zeros, some of them exchanged for those of x, or added to."""
    x = d.pick("f", 2)
    d.need(all(a.size for a in x.arrays) and x.is_fixed(0))
    rows = d.rng.permutation(x.size(0) + 2)[: x.size(0)].reshape(-1, 1)
    (shape,) = d.node("Shape", [x], exact=True, start=1)
    (whole,) = d.node("Concat", [d.stored([x.size(0) + 2]), shape], exact=True, axis=0)
    (empty,) = d.node("ConstantOfShape", [whole], exact=True)
    reduction = d.of("none", "add", "max")
    return d.node("ScatterND", [empty, d.stored(rows), x], exact=True, reduction=reduction)


STEPS: tuple[Step, ...] = (
    *(smooth, smooth, exact, gate, arithmetic, arithmetic, with_constant, with_constant),
    *(with_weight, clipped, compared, logic, selected, rounded, cast),
    *(permuted, permuted, reshaped, reshaped, measured, squeezed, sliced, divided),
    *(padded, joined, tiled, gathered, gathered, reduced, reduced, best, along, cumulated, sorted_),
    *(normalized, written_norm, multiplied, multiplied, of_two, general, attended),
    *(convolved, convolved, pooled, resized, shuffled, summed, found, chosen, repeated),
    *(quantized, of_codes, of_codes, recurrent, scattered),
)


def drawn(seed: int, count: int = 14) -> Model:
    """A model of about so many nodes; equal seeds give equal models."""
    d = Drawing(seed)
    for _ in range(20 * count):
        if len(d.model.nodes) >= count:
            break
        try:
            d.of(*STEPS)(d)
        except Rejected:
            continue
    return d.model


def outputs_of(model: Model, seed: int) -> list[Tensor]:
    """The last tensors, which nothing reads, and one from within."""
    read = {name for node in model.nodes for name in (*node.input, *captured(node))}
    ends = [t for t in model.made if t.name not in read]
    within = [t for t in model.made if t.name in read]
    if within:
        ends.append(within[np.random.default_rng(seed).integers(len(within))])
    return ends


def differences(
    actual: dict[str, Any], outputs: Sequence[Tensor], binding: int, tolerance: float = 1e-3
) -> Iterator[str]:
    """What is not as ONNX Runtime has it, in a line each."""
    for t in outputs:
        got, want = np.asarray(actual[t.name]), t.arrays[binding]
        if got.dtype != want.dtype or got.shape != want.shape:
            yield f"{t.name}: {got.dtype}{got.shape} for {want.dtype}{want.shape}"
        elif want.dtype.kind == "f":
            scale = max(1.0, float(np.abs(want).max(initial=0)))
            error = float(np.abs(got - want).max(initial=0)) / scale
            if not error <= (1e-6 if t.exact else tolerance):
                yield f"{t.name}: differs by {error:.2g} of the largest value"
        elif not np.array_equal(got, want):
            yield f"{t.name}: {np.count_nonzero(got != want)} of {want.size} elements differ"
