"""Convolutions as products of the patches that they see: channels last, nothing is copied.

A patch's depth is (tap, channel), as the weight has it; a step's addresses are computed from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from whet.ir.graph import Op, Value, operator
from whet.ir.sizes import Size, symbol
from whet.ir.types import TensorType
from whet.ops.contract import Convolution, MatMul
from whet.ops.movement import Slice, Transpose, reshape, transpose
from whet.ops.quantize import EIGHT_BITS, SIGN, signed, sums, with_padding
from whet.plan.kernel import Axis, Range, Template, View
from whet.plan.lower import loop_index, within
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.expressions import Emitter, Place, R, X
from whet.targets.cuda.source import Source
from whet.targets.cuda.templates import tiling
from whet.targets.cuda.templates.contraction import Code, Problem, integer
from whet.targets.cuda.templates.few_channels import in_wide_lines
from whet.targets.cuda.templates.matmul import DTYPES, dtype_of, offset_of, shape_of
from whet.targets.cuda.templates.stream import StreamCode


@operator
class ImplicitConvolution(Convolution):
    """A convolution that this target runs whole; 16-bit floats add up in float32, int8 in int32.

    With `channels_first` the weight is w[O, C/groups, *K], and sums run in that order too: for an x
    whose channels do not lie side by side. Outside of x lies `fill`.
    """

    channels_first: bool = False
    fill: int = 0

    def infer(self, x: TensorType, w: TensorType) -> TensorType:
        if self.channels_first:
            w = w.with_shape(w.shape[0], *w.shape[2:], w.shape[1])
        return super().infer(x, w)


class ConvolutionTemplate:
    """x[N, *S, C] with w[O, *K, C/groups]."""

    has_epilogue = True
    has_strided_output = True

    def takes(self, op: Op, position: int, view: View) -> bool:
        return position == 0

    def legalize(self, value: Value, architecture: Architecture) -> Value | None:
        op = value.op
        if type(op) is not Convolution:
            return None
        x, w = value.inputs
        assert x is not None and w is not None
        fill = 0
        if op.accumulate == "int32" and x.dtype in EIGHT_BITS and w.dtype == "int8":
            op, x, fill = with_padding(op, x)
        elif value.dtype not in DTYPES or op.accumulate is not None:
            return None
        if not w.tensor.is_static or 0 in (*value.shape, *x.shape):
            return None
        if not all(isinstance(n, int) for n in (*op.before, *op.after, x.shape[-1])):
            return None
        is_padded = any((*op.before, *op.after))
        if op.groups == 1 and all(k == 1 for k in w.shape[1:-1]) and not is_padded:
            return _product(op, x, w, value)
        if w.shape[-1] * w.shape[0] // op.groups < FEWEST_PER_GROUP:  # type: ignore[operator]
            return None  # depthwise, or nearly so: loops read each element once
        wide = in_wide_lines(op, x, w, value)
        if wide is not None:
            return wide
        less = SIGN if x.dtype == "uint8" else 0
        first = isinstance(x.op, Transpose) and x.op.order[-1] != x.rank - 1 and op.groups == 1
        first = first and not less
        turned = transpose(w, 0, w.rank - 1, *range(1, w.rank - 1)) if first else w
        options = (op.strides, op.dilations, op.before, op.after, op.groups, op.accumulate)
        run = ImplicitConvolution(*options, first, fill - less)
        if not less:
            return run(x, turned)
        y: Value = run(signed(x), turned) + sums(op, w) * less
        return y

    def tiles(self, kernel: Template, architecture: Architecture) -> list[tiling.Tile]:
        return tiling.ranked(shape_of(problem_of(kernel), dtype_of(kernel)), architecture)

    def close(
        self, kernel: Template, architecture: Architecture, factor: float
    ) -> list[tiling.Tile]:
        return tiling.close(shape_of(problem_of(kernel), dtype_of(kernel)), architecture, factor)

    def generate(
        self, kernel: Template, architecture: Architecture, tile: tiling.Tile, name: str = "kernel"
    ) -> Source:
        code = StreamCode if tile.split == tiling.STREAM else Code
        made = code(kernel, problem_of(kernel), tile, architecture, dtype_of(kernel))
        return made.generate(name)


FEWEST_PER_GROUP = 32


def _product(op: Convolution, x: Value, w: Value, value: Value) -> Value:
    """A convolution of one tap: a product, of every so many-th element where it strides."""
    if any(s != 1 for s in op.strides):
        starts, steps = (0,) * x.rank, (1, *op.strides, 1)
        x = Slice(starts, (*value.shape[:-1], x.shape[-1]), steps)(x)
    matrix = transpose(reshape(w, w.shape[0], w.shape[-1]), 1, 0)
    y: Value = MatMul(op.accumulate)(x, matrix)
    return y


@dataclass(frozen=True)
class Patches:
    """The left side: elements of x under the filter's taps."""

    view: View
    index: tuple[Size, ...]
    ranges: tuple[Range, ...]
    taps: tuple[Axis, ...]
    channels: int
    channels_first: bool
    fill: int

    def __call__(self, code: Code, e: Emitter, step: str) -> str:
        """The load of the tile of a step."""
        t, depth, text = code.tile, code.problem.depth, code.text
        places = {**code.batch, **code.by_row}
        masks = {"x": code.row_mask}
        each = self.channels // t.depth
        k = "" if self.channels % t.depth == 0 and not self.channels_first else code.depth_of(step)
        if self.channels_first:
            flat = text.assign(code.arange(k, t.depth, "r"), "k")
            if depth % t.depth:
                masks["r"] = text.assign(f"{flat} < {depth}", "m")
            sizes = {"channel": self.channels} | {a.name: a.size for a in self.taps}
            tap, channel = Place(flat, R), None
            places |= e.unjoin(tap, sizes)
        elif self.channels % t.depth == 0:
            # All of a step lies in one tap. Only when the quotient comes before the product does
            # Triton see that begins are multiples of the depth, and load ahead of time.
            tap = Place(text.assign(e.wide(f"{step} // {each}"), "k"))
            begin = text.assign(f"{step} % {each} * {t.depth}", "k") if each > 1 else "0"
            channel = Place(text.assign(code.arange(begin, t.depth, "r"), "k"), R)
        else:
            flat = text.assign(code.arange(k, t.depth, "r"), "k")
            if depth % t.depth:
                masks["r"] = text.assign(f"{flat} < {depth}", "m")
            tap = Place(text.assign(f"{flat} // {self.channels}", "k"), R)
            channel = Place(text.assign(f"{flat} % {self.channels}", "k"), R)
        if channel is not None:
            places |= e.unjoin(tap, {a.name: a.size for a in self.taps})
            places["channel"] = channel
        with e.scope(places=places):
            guards = tuple(e.inside((r,)) for r in self.ranges)
            with e.scope(guards=guards):
                offset = offset_of(self.view, self.index)
                masks = {d: m for d, m in masks.items() if m}
                return code.load(e, self.view.buffer, offset, masks, self.fill)


@dataclass(frozen=True)
class Filters:
    """The right side: the weight, whose depth lies side by side."""

    view: View
    offset: Size

    def __call__(self, code: Code, e: Emitter, step: str) -> str:
        """The load of the tile of a step."""
        depth, t, k = code.problem.depth, code.tile, code.depth_of(step)
        at = code.text.assign(code.arange(k, t.depth, "x"), "k")
        places = {**code.batch, "depth": Place(at, X), code.problem.column.name: code.column}
        masks = {"r": code.column_mask}
        if depth % t.depth:
            masks["x"] = code.text.assign(f"{at} < {depth}", "m")
        with e.scope(places=places):
            return code.load(
                e, self.view.buffer, self.offset, {d: m for d, m in masks.items() if m}
            )


def joins_last_taps(op: Any, x: View, kernel_sizes: tuple[Size, ...]) -> bool:
    """Whether the taps of a line and their channels are neighbours in memory, none outside."""
    inside = not op.before[-1] and not op.after[-1] and op.dilations[-1] == 1
    near = x.strides[-1] == 1 and x.strides[-2] == x.shape[-1] and op.groups == 1
    return inside and near and kernel_sizes[-1] != 1 and not op.channels_first


def problem_of(kernel: Template) -> Problem:
    """The kernel's convolution as a product."""
    op: Any = kernel.op
    x, w = kernel.inputs
    assert x is not None and w is not None
    *lead, last = kernel.axes
    kernel_sizes = w.shape[2:] if op.channels_first else w.shape[1:-1]
    channels = integer(w.shape[1] if op.channels_first else w.shape[-1])
    filters = integer(w.shape[0]) // op.groups
    depth = channels * math.prod(integer(k) for k in kernel_sizes)
    group = Axis("group", op.groups)
    column = Axis("filter", filters)
    taps = tuple(Axis(f"tap{n}", k) for n, k in enumerate(kernel_sizes))
    if joins_last_taps(op, x, kernel_sizes):
        channels *= integer(kernel_sizes[-1])
        taps = (*taps[:-1], Axis(taps[-1].name, 1))
    index: list[Size] = [loop_index(lead[0].name, lead[0].size)]
    ranges: list[Range] = []
    for n, (axis, tap) in enumerate(zip(lead[1:], taps)):
        step = loop_index(tap.name, tap.size) * op.dilations[n]
        at = loop_index(axis.name, axis.size) * op.strides[n] + step - op.before[n]
        index.append(at)
        ranges.append((at, x.shape[n + 1]))
    g = loop_index(group.name, group.size)
    index.append(g * channels + symbol("channel", 0, channels - 1))
    rows = tuple(a for a in lead if a.size != 1) or (Axis("row", 1),)
    by_filter = (g * filters + loop_index(column.name, filters)) * depth
    weight = w.offset + by_filter + symbol("depth", 0, depth - 1)
    output = offset_of(kernel.output, tuple(loop_index(a.name, a.size) for a in kernel.axes))

    def places(known: dict[str, Place]) -> dict[str, Place]:
        n = known[column.name].text
        text = f"({known['group'].text} * {filters} + {n})" if op.groups > 1 else n
        return {**known, last.name: Place(text, R)}

    return Problem(
        (group,) if op.groups > 1 else (),
        rows,
        column,
        depth,
        Patches(
            x,
            tuple(index),
            within(ranges),
            tuple(t for t in taps if t.size != 1),
            channels,
            op.channels_first,
            op.fill,
        ),
        Filters(w, weight),
        places,
        kernel.epilogue,
        output,
        (offset_of(x, tuple(index)), weight),
        (w.buffer, weight),
    )
