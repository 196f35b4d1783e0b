"""Random ONNX graphs of mixed operators: the steps that compute more, and whole graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from tests.frontends.drawing import Drawing, Model, Rejected, Tensor, captured
from tests.frontends.small_steps import SMALL_STEPS

Step = Callable[[Drawing], Any]


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
    d.need(all(array.size for array in x.arrays))  # ONNX Runtime leaves an axis of nothing as it is
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
    *SMALL_STEPS,
    *(reduced, reduced, best, along, cumulated, sorted_),
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
