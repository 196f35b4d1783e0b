"""Random ONNX nodes of operators whose attributes interact: windows, resampling, recurrence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tests.frontends.contrib_cases import Array, Draw, Node

EACH = 6  # nodes of each kind


class Dice(Draw):
    """Random numbers and choices beside random arrays."""

    def number(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def numbers(self, count: int, low: int, high: int) -> list[int]:
        return [self.number(low, high) for _ in range(count)]

    def of(self, *items: Any) -> Any:
        return items[self.number(0, len(items) - 1)]

    def maybe(self, item: Any) -> Any:
        return item if self.number(0, 1) else None


def node(operator: str, inputs: Sequence[Array | None], outputs: int = 1, **rest: Any) -> Node:
    """A node of ONNX's own domain; trailing absent inputs are left out."""
    given = list(inputs)
    while given and given[-1] is None:
        given.pop()
    attributes = rest.pop("attributes")
    return Node("", operator, tuple(given), outputs, attributes, 1e-4, domain="", **rest)


def convolution(d: Dice) -> Node:
    rank, group = d.number(1, 3), d.of(1, 1, 2, 3)
    kernel, channels = d.numbers(rank, 1, 4), group * d.number(1, 3)
    auto_pad = d.of("NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
    attributes = {"strides": d.numbers(rank, 1, 3), "group": group, "auto_pad": auto_pad}
    if auto_pad == "NOTSET":
        attributes["pads"] = d.numbers(2 * rank, 0, 3)
    if not auto_pad.startswith("SAME"):
        attributes["dilations"] = d.numbers(rank, 1, 2)
    x = d(d.number(1, 2), channels, *d.numbers(rank, 8, 12))
    out = group * d.number(1, 3)
    w = d(out, channels // group, *kernel)
    return node("Conv", (x, w, d.maybe(d(out))), attributes=attributes)


def transposed(d: Dice) -> Node:
    rank, group = d.number(1, 3), d.of(1, 1, 2, 3)
    strides, out = d.numbers(rank, 1, 4), d.number(1, 3)
    kernel = [d.number(s, 5) for s in strides]
    sizes, dilations = d.numbers(rank, 2, 6), d.numbers(rank, 1, 2)
    x, w = d(2, group * 2, *sizes), d(group * 2, out, *kernel)
    attributes = {"strides": strides, "group": group, "dilations": dilations}
    form = d.number(0, 3)
    if form == 0:
        attributes["pads"] = d.numbers(2 * rank, 0, 1)
    elif form == 1:
        attributes["output_padding"] = [d.number(0, min(s - 1, 1)) for s in strides]
    elif form == 2:
        attributes["auto_pad"] = d.of("SAME_UPPER", "SAME_LOWER")
    else:
        full = zip(sizes, strides, kernel, dilations)
        attributes["output_shape"] = [(n - 1) * s + (k - 1) * r + 1 for n, s, k, r in full]
    return node("ConvTranspose", (x, w, d.maybe(d(out * group))), attributes=attributes)


def pooling(d: Dice) -> Node:
    rank = d.number(1, 3)
    kernel = d.numbers(rank, 1, 4)
    kind = d.of("MaxPool", "AveragePool", "LpPool")
    auto_pad = d.of("NOTSET", "NOTSET", "SAME_UPPER", "VALID")
    strides = [d.number(1, k) for k in kernel]
    attributes = {"kernel_shape": kernel, "strides": strides, "auto_pad": auto_pad}
    attributes["ceil_mode"] = d.number(0, 1)
    if auto_pad == "NOTSET":
        least = 0 if kind == "MaxPool" else 1  # other kinds may not pad half a window
        attributes["pads"] = [d.number(0, (k - least) // 2) for k in kernel] * 2
        attributes["dilations"] = d.numbers(rank, 1, 2)
    if kind == "AveragePool":
        attributes["count_include_pad"] = d.number(0, 1)
    if kind == "LpPool":
        attributes["p"] = d.number(1, 3)
    x = d(2, 3, *d.numbers(rank, 7, 12))
    if kind == "MaxPool" and rank > 1:
        return node(kind, (x,), 2, attributes={**attributes, "storage_order": d.number(0, 1)})
    return node(kind, (x,), attributes=attributes)


def resampling(d: Dice) -> Node:
    mode = d.of("nearest", "linear", "cubic")
    transform = d.of("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
    attributes = {"mode": mode, "coordinate_transformation_mode": transform}
    if mode == "nearest":
        rounding = d.of("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
        attributes["nearest_mode"] = rounding
    else:
        attributes["antialias"] = d.of(0, 0, 1)
    if mode == "cubic":
        attributes |= {"cubic_coeff_a": d.of(-0.5, -0.75), "exclude_outside": d.number(0, 1)}
    x = d(2, 3, *d.numbers(2, 1, 9))
    if d.number(0, 1):
        scales = [1.0, 1.0, *(d.of(0.5, 2.0, 3.0, 1.5, 0.7, 1.0) for _ in range(2))]
        inputs = (x, None, np.array(scales, np.float32))
        return node("Resize", inputs, attributes=attributes, fixed=(2,))
    sizes = np.array([2, 3, *d.numbers(2, 1, 20)], np.int64)
    return node("Resize", (x, None, None, sizes), attributes=attributes, fixed=(3,))


ACTIVATIONS = (
    *("Relu", "Tanh", "Sigmoid", "Affine", "LeakyRelu", "ThresholdedRelu"),
    *("ScaledTanh", "HardSigmoid", "Elu", "Softsign", "Softplus"),
)


def recurrent(d: Dice) -> Node:
    kind, functions = d.of(("LSTM", 3), ("GRU", 2), ("RNN", 1))
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    direction = d.of("forward", "reverse", "bidirectional")
    count = 2 if direction == "bidirectional" else 1
    steps, batch, width, hidden = d.number(1, 7), d.number(1, 3), d.number(1, 4), d.number(1, 5)
    state = count, batch, hidden
    inputs = [
        d(steps, batch, width),
        d(count, gates * hidden, width, scale=0.4),
        d(count, gates * hidden, hidden, scale=0.4),
        d.maybe(d(count, 2 * gates * hidden)),
        d.maybe(d.ints(1, steps + 1, batch)),
        d.maybe(d(*state)),
    ]
    attributes: dict[str, Any] = {"direction": direction, "hidden_size": hidden}
    if kind == "GRU":
        attributes["linear_before_reset"] = d.number(0, 1)
    if kind == "LSTM":
        inputs += [d.maybe(d(*state)), d.maybe(d(count, 3 * hidden))]
        attributes["input_forget"] = d.number(0, 1)
    if d.number(0, 1):
        # Some of them have no bound, and would grow from step to step.
        attributes["clip"] = 1.0
        names = [d.of(*ACTIVATIONS) for _ in range(functions * count)]
        parameters = [[round(float(d.rng.uniform(0.1, 1)), 2) for _ in names] for _ in range(2)]
        alphas, betas = parameters
        attributes |= {"activations": names, "activation_alpha": alphas, "activation_beta": betas}
    return node(kind, inputs, 3 if kind == "LSTM" else 2, attributes=attributes)


def sampled(d: Dice) -> Node:
    rank = d.of(2, 2, 3)
    grid = d.rng.uniform(-1.5, 1.5, (2, *d.numbers(rank, 2, 4), rank)).astype(np.float32)
    mode = d.of("linear", "nearest", *(("cubic",) if rank == 2 else ()))
    padding = d.of("zeros", "border", "reflection")
    attributes = {"mode": mode, "padding_mode": padding, "align_corners": d.number(0, 1)}
    return node("GridSample", (d(2, 3, *d.numbers(rank, 1, 6)), grid), attributes=attributes)


def region(d: Dice) -> Node:
    corner = d.rng.uniform(-1, 6, (4, 2))
    rois = np.concatenate([corner, corner + d.rng.uniform(0, 6, (4, 2))], 1).astype(np.float32)
    attributes = {
        "mode": d.of("avg", "max"),
        "output_height": d.number(1, 3),
        "output_width": d.number(1, 3),
        "sampling_ratio": d.number(0, 3),
        "spatial_scale": d.of(1.0, 0.5),
        "coordinate_transformation_mode": d.of("half_pixel", "output_half_pixel"),
    }
    which = d.ints(0, 2, 4, dtype=np.int64)
    return node("RoiAlign", (d(2, 3, 8, 9), rois, which), attributes=attributes)


def max_region(d: Dice) -> Node:
    corner = d.rng.integers(0, 5, (4, 2))
    parts = d.rng.integers(0, 2, (4, 1)), corner, corner + d.rng.integers(0, 6, (4, 2))
    rois = np.concatenate(parts, 1).astype(np.float32)
    attributes = {"pooled_shape": d.numbers(2, 1, 3), "spatial_scale": d.of(1.0, 0.5)}
    return node("MaxRoiPool", (d(2, 3, 8, 9), rois), attributes=attributes)


def flattening(d: Dice) -> Node:
    rank = d.number(1, 4)
    attributes = {"axis": d.number(-rank, rank - 1)}
    kind = d.of("Softmax", "LogSoftmax", "Hardmax")
    x = d(*d.numbers(rank, 1, 4))
    return node(kind, (x,), attributes=attributes, opset=d.of(7, 11, 13))


EQUATIONS = (
    *("ij,jk->ik", "...ij,...jk->...ik", "ij->ji", "ij->", "ii->i", "ii", "i,j->ij", "ij,ij->i"),
    *("bhid,bhjd->bhij", "bij,bjk,bkl->bil", "ij,jk", "ijj->i", "...i->...", "b...,b...->..."),
)


def summation(d: Dice) -> Node:
    equation = d.of(*EQUATIONS)
    size = {letter: d.number(2, 4) for letter in "bhijkld"}
    batch = d.numbers(d.number(0, 2), 1, 3)
    inputs = []
    for term in equation.partition("->")[0].split(","):
        named = [size[c] for c in term if c != "."]
        at = term.find("...")
        shape = [*named[:at], *batch, *named[at:]] if at >= 0 else named
        inputs.append(d(*shape))
    return node("Einsum", inputs, attributes={"equation": equation})


KINDS = (
    *(convolution, transposed, pooling, resampling, recurrent, sampled, region, max_region),
    *(flattening, summation),
)


def nodes(seed: int) -> Iterator[tuple[str, Node]]:
    """Some of every kind, by name; equal seeds give equal nodes."""
    for kind in KINDS:
        d = Dice(seed)
        for i in range(EACH):
            yield f"{kind.__name__}-{i}", kind(d)
