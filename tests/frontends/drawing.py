"""A random ONNX graph under way, grown node by node with ONNX Runtime as the judge.

Each tensor is known for two bindings of the named sizes `n` and `m`, so that what is drawn holds
for more than one set of sizes. A node that ONNX Runtime refuses, or whose results are not finite,
is drawn again; the expected outputs are those of the nodes one by one, without any fusion.
"""

from __future__ import annotations

from collections.abc import Sequence
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
