"""The float64 reference: ONNX's own evaluator on a model turned to float64, independent of whet.

Five of the evaluator's operators are replaced: too slow for real networks, or wrong there.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, TypeProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

Array = NDArray[Any]
NARROW = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}
TYPE_ATTRIBUTES = {"to", "dtype", "softmax_precision", "output_dtype"}


def reference(path: Path, feeds: dict[str, Array]) -> list[Array]:
    """The model's outputs with every floating-point tensor in float64."""
    model = onnx.load(path)
    widen_graph(model.graph)
    for function in model.functions:
        widen_nodes(function.node)
    evaluator = ReferenceEvaluator(model, new_ops=OPERATORS)
    wide = {name: x.astype(np.float64) if x.dtype.kind == "f" else x for name, x in feeds.items()}
    return list(evaluator.run(None, wide))


def widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type in NARROW:
        name, values = tensor.name, numpy_helper.to_array(tensor).astype(np.float64)
        tensor.CopyFrom(numpy_helper.from_array(values, name))


def widen_type(type_: TypeProto) -> None:
    if type_.tensor_type.elem_type in NARROW:
        type_.tensor_type.elem_type = TensorProto.DOUBLE


def widen_attribute(attribute: AttributeProto) -> None:
    if attribute.name in TYPE_ATTRIBUTES and attribute.i in NARROW:
        attribute.i = TensorProto.DOUBLE
    for tensor in [attribute.t, *attribute.tensors]:
        widen_tensor(tensor)
    if attribute.HasField("g"):
        widen_graph(attribute.g)
    for graph in attribute.graphs:
        widen_graph(graph)


def widen_nodes(nodes: Iterable[NodeProto]) -> None:
    for node in nodes:
        for attribute in node.attribute:
            widen_attribute(attribute)


def widen_graph(graph: GraphProto) -> None:
    """Turn every floating-point tensor, type and cast of a graph to float64, in place."""
    for tensor in graph.initializer:
        widen_tensor(tensor)
    for value in [*graph.input, *graph.output, *graph.value_info]:
        widen_type(value.type)
    widen_nodes(graph.node)


def same_padding(size: int, kernel: int, stride: int, auto_pad: str) -> tuple[int, int]:
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    small = total // 2
    return (total - small, small) if auto_pad == "SAME_LOWER" else (small, total - small)


class Window:
    """The taps of a sliding window over the spatial axes of an N C ... array."""

    def __init__(self, shape: tuple[int, ...], kernel: list[int], attributes: dict[str, Any]):
        rank, auto_pad = len(kernel), attributes["auto_pad"]
        self.kernel, self.strides = kernel, attributes["strides"] or [1] * rank
        self.dilations = attributes["dilations"] or [1] * rank
        extents = [(k - 1) * d + 1 for k, d in zip(kernel, self.dilations)]
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            self.pads = [same_padding(*a, auto_pad) for a in zip(shape[2:], extents, self.strides)]
        else:
            flat = attributes["pads"] or [0] * (2 * rank)
            self.pads = list(zip(flat[:rank], flat[rank:]))
        ceil = attributes.get("ceil_mode", 0)
        axes = zip(shape[2:], self.pads, extents, self.strides)
        self.sizes = [window_count(*axis, ceil) for axis in axes]

    def padded(self, x: Array, value: float) -> Array:
        """The array with its border, wide enough for windows that a ceiling lets stand out."""
        reach = [
            (n - 1) * s + (k - 1) * d + 1
            for n, s, k, d in zip(self.sizes, self.strides, self.kernel, self.dilations)
        ]
        spatial = [
            (lo, max(hi, r - n - lo)) for (lo, hi), r, n in zip(self.pads, reach, x.shape[2:])
        ]
        return np.pad(x, [(0, 0), (0, 0), *spatial], constant_values=value)

    def taps(self, x: Array) -> Iterator[Array]:
        """What each position of the kernel reads of the padded array, the last axis fastest."""
        for tap in itertools.product(*map(range, self.kernel)):
            steps = zip(tap, self.dilations, self.sizes, self.strides)
            slices = (slice(t * d, t * d + (n - 1) * s + 1, s) for t, d, n, s in steps)
            yield x[:, :, *slices]


def window_count(size: int, pads: tuple[int, int], extent: int, stride: int, ceil: int) -> int:
    room = size + sum(pads) - extent
    count = (-(-room // stride) if ceil else room // stride) + 1
    # A window that starts in the padding after the end is not taken.
    return count - 1 if ceil and (count - 1) * stride >= size + pads[0] else count


class Conv(OpRun):
    """Convolution as one matrix product per tap of the kernel."""

    op_domain = ""

    def _run(
        self, x: Array, w: Array, bias: Array | None = None, **attributes: Any
    ) -> tuple[Array]:
        groups = attributes["group"] or 1
        window = Window(x.shape, list(w.shape[2:]), attributes)
        weights = w.reshape(groups, w.shape[0] // groups, w.shape[1], -1)
        result = np.zeros((x.shape[0], groups, weights.shape[1], math.prod(window.sizes)))
        for k, view in enumerate(window.taps(window.padded(x, 0.0))):
            result += weights[..., k] @ view.reshape(x.shape[0], groups, weights.shape[2], -1)
        result = result.reshape(x.shape[0], w.shape[0], *window.sizes)
        if bias is not None:
            result += bias.reshape(-1, *[1] * (x.ndim - 2))
        return (result,)


class MaxPool(OpRun):
    """Maximum over a window, without the indices."""

    op_domain = ""

    def _run(self, x: Array, **attributes: Any) -> tuple[Array]:
        window = Window(x.shape, attributes["kernel_shape"], attributes)
        return (np.max(list(window.taps(window.padded(x, -np.inf))), axis=0),)


class AveragePool(OpRun):
    """Mean over a window; whether the border counts is an attribute."""

    op_domain = ""

    def _run(self, x: Array, **attributes: Any) -> tuple[Array]:
        window = Window(x.shape, attributes["kernel_shape"], attributes)
        total = np.sum(list(window.taps(window.padded(x, 0.0))), axis=0)
        # What counts is the image and, if asked for, its border, never what a ceiling adds.
        counted = np.ones((1, 1, *x.shape[2:]))
        spread = [(0, 0), (0, 0), *window.pads]
        counted = np.pad(counted, spread, constant_values=attributes["count_include_pad"])
        reach = window.padded(x[:1, :1], 0.0).shape
        counted = np.pad(counted, [(0, r - n) for r, n in zip(reach, counted.shape)])
        return (total / np.sum(list(window.taps(counted)), axis=0),)


class Gelu(OpRun):
    """x times the normal distribution's cumulative function, or its tanh approximation."""

    op_domain = ""

    def _run(self, x: Array, approximate: str = "none") -> tuple[Array]:
        if approximate == "tanh":
            return (0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),)
        scaled = (x / math.sqrt(2)).ravel().tolist()
        erf = np.fromiter(map(math.erf, scaled), float, x.size)
        return (0.5 * x * (1 + erf.reshape(x.shape)),)


class GatherElements(OpRun):
    """Elements along an axis; the evaluator's own fails beyond 64 of them."""

    op_domain = ""

    def _run(self, data: Array, indices: Array, axis: int = 0) -> tuple[Array]:
        return (np.take_along_axis(data, indices, axis),)


OPERATORS: list[type[OpRun]] = [Conv, MaxPool, AveragePool, Gelu, GatherElements]
"""What replaces the evaluator's own."""
