"""Winograd's minimal filtering F(2x2, 3x3): 16 products where the direct sum takes 36.

After Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (2015): a 4 x 4 patch is
transformed, multiplied at each of its 16 points by a transformed weight and summed over channels,
and transformed back to 2 x 2 outputs. All three steps stay on one thread and in its caches.

With sums in blocks of 64 channels the error is 1.1 to 1.5 times that of the direct sum; the larger
F(4x4, 3x3) has 3 to 4 times the error, whatever its points, and is left out for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from whet.targets.cpu.architecture import Architecture
from whet.targets.cpu.llvm import Function, Index, Module, vector
from whet.targets.cpu.templates.dense import Dense, Panels
from whet.targets.cpu.templates.epilogue import (
    BIAS,
    FIRST_BUFFER,
    WEIGHT,
    Epilogue,
    Origin,
    X,
    finish,
)
from whet.targets.cpu.templates.packing import Packing
from whet.targets.cpu.templates.schedule import Schedule
from whet.targets.cpu.templates.specification import Convolution, product
from whet.targets.cpu.templates.tiling import share, split_even

POINTS = 16
BLOCK = 64
STACK = 1 << 20
"""Bytes of stack for transformed patches and their sums, at most."""
WEIGHT_TRANSFORM = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))


def fits(c: Convolution) -> bool:
    """Whether the convolution is one that this template can do."""
    plain = c.groups == 1 and set(c.steps) == set(c.dilations) == {1}
    return c.rank == 2 and c.kernel == (3, 3) and plain and c.x_strides[-1] == 1


def patches(c: Convolution) -> int:
    """How many 2 x 2 blocks y has."""
    return c.batch * math.prod(-(-n // 2) for n in c.outputs)


def group_bytes(c: Convolution, outputs: int, width: int) -> int:
    """What so many patches and their sums, for a panel of a width, take at all points."""
    return 4 * POINTS * outputs * (c.channels + width)


def packing(c: Convolution, schedule: Schedule, architecture: Architecture) -> Packing:
    """[panel, point, channel, lane] of the weight transformed along both taps."""
    lanes = architecture.vector_bytes // 4
    p = Panels.balanced(1, c.filters, lanes, schedule.vectors)
    return Packing(
        shape=(c.filters, 4, 4, c.channels),
        padded=(p.count * p.width, 4, 4, c.channels),
        split=(p.count, p.width, 4, 4, c.channels),
        order=(0, 2, 3, 4, 1),
        matrices=((1, WEIGHT_TRANSFORM), (2, WEIGHT_TRANSFORM)),
    )


class Winograd:
    """Generates one kernel."""

    def __init__(
        self,
        convolution: Convolution,
        schedule: Schedule,
        architecture: Architecture,
        epilogue: Epilogue,
        name: str,
    ) -> None:
        self.c, self.schedule, self.epilogue, self.name = convolution, schedule, epilogue, name
        c = convolution
        self.module = Module(architecture.vector_bytes * 8)
        self.lanes = architecture.vector_bytes // 4
        self.panels = Panels.balanced(1, c.filters, self.lanes, schedule.vectors)
        self.height, self.width = (-(-n // 2) for n in c.outputs)
        # Where a run tells the batch, each image has groups of its own.
        alone = replace(c, batch=1) if c.is_told else c
        self.schedule = replace(schedule, ahead=False) if c.is_told else schedule
        self.sizes = split_even(patches(alone), schedule.outputs)
        """Patches of each group; a group is the rows of one product."""
        self.larger = self.sizes.count(self.sizes[0])
        self.row_bytes = 4 * c.channels
        self.point_bytes = self.sizes[0] * self.row_bytes
        self.group_bytes = POINTS * self.point_bytes
        self.result_row = 4 * self.panels.width
        self.result_point = self.sizes[0] * self.result_row
        self.held = max(1, STACK // group_bytes(c, self.sizes[0], self.panels.width))
        if not c.is_told:
            self.held = min(len(self.sizes), self.held)
        """Groups whose transformed patches are in memory at a time."""
        self.panel_bytes = POINTS * c.channels * self.panels.width * 4
        self.products = {size: self._product(size, architecture) for size in set(self.sizes)}

    def generate(self) -> str:
        """The kernel and its functions as LLVM assembly."""
        parameters = {"arguments": "ptr noalias", "thread": "i64", "threads": "i64"}
        f = self.module.function(self.name, parameters)
        _, thread, threads = f.parameters
        self.patches = f.alloca(self.held * self.group_bytes)
        self.results = f.alloca(self.held * POINTS * self.result_point)
        self.block = f.alloca(32)
        weight = f.load("ptr", "%arguments", 8 * WEIGHT)
        groups, panels = self._groups(f), self.panels.count
        part = share(f, thread, threads, groups, panels, self.schedule.teams)

        def some_groups(low: str, _: list[str]) -> None:
            high = f.min(f.add(low, self.held), part.end_tile)
            f.loop(low, high, 1, lambda g, _: self._transform_group(f, g, low), guard=False)

            def one_panel(panel: str, _: list[str]) -> None:
                packed = f.address(weight, f.mul(panel, self.panel_bytes))
                channel = f.mul(panel, self.panels.width)
                self._of_width(f, panel, lambda n: self._panel(f, low, high, packed, channel, n))

            f.loop(part.first_panel, part.end_panel, 1, one_panel, guard=True)

        f.loop(part.first_tile, part.end_tile, self.held, some_groups, guard=True)
        f.end()
        return self.module.text()

    def _groups(self, f: Function) -> Index:
        """How many groups there are."""
        if not self.c.is_told:
            return len(self.sizes)
        return f.mul(self.epilogue.size(f, self.c.batch), len(self.sizes))

    def _in_image(self, f: Function, group: Index) -> tuple[Index, Index]:
        """The image that groups are counted in, and the number of a group there."""
        if not self.c.is_told:
            return 0, group
        return f.div(group, len(self.sizes)), f.rem(group, len(self.sizes))

    def _of_width(self, f: Function, panel: Index, body: Callable[[int], None]) -> None:
        """body(channels) for the panel, which may be the last and narrower."""
        p = self.panels
        if p.last == p.width or p.count == 1:
            body(p.last)
            return
        is_last = f.compare("eq", "i64", str(panel), str(p.count - 1))
        f.when(is_last, lambda: body(p.last), lambda: body(p.width))

    def _panel(
        self, f: Function, low: Index, high: Index, packed: str, channel: Index, channels: int
    ) -> None:
        """Products and outputs of the groups in memory, for one panel: each weight is read once."""

        def one_point(point: str, _: list[str]) -> None:
            def multiply(group: str, _: list[str]) -> None:
                place = f.sub(group, low)
                self._of_size(
                    f, group, lambda n: self._multiply(f, group, place, point, packed, n, channels)
                )

            f.loop(low, high, 1, multiply, guard=False)

        def one_group(group: str, _: list[str]) -> None:
            sums = f.address(self.results, f.mul(f.sub(group, low), POINTS * self.result_point))

            def call(place: str, at: str) -> None:
                patch = f.address(sums, f.mul(place, self.result_row))
                given = f"ptr %arguments, {at}, ptr {patch}, i64 {channel}"
                f.do(f"call void @{self._outputs(channels)}({given})")

            self._each_patch(f, group, call)

        f.loop(0, POINTS, 1, one_point)
        f.loop(low, high, 1, one_group, guard=False)

    def _multiply(
        self,
        f: Function,
        group: str,
        place: Index,
        point: str,
        packed: str,
        size: int,
        channels: int,
    ) -> None:
        """The sums over channels of one group at one point, for one panel."""
        kernel = self.products[size]
        function = kernel.tile(tuple(axis[0] for axis in kernel.grid.axes), channels)
        offset = f.add(f.mul(place, self.group_bytes), f.mul(point, self.point_bytes))
        f.store("ptr", f.address(self.patches, offset), self.block, 8 * X)
        offset = f.mul(f.add(f.mul(place, POINTS), point), self.result_point)
        f.store("ptr", f.address(self.results, offset), self.block, 8 * FIRST_BUFFER)
        at = f.address(packed, f.mul(point, self.panel_bytes // POINTS))
        given = f"ptr {self.block}, ptr {at}, i64 0"
        if kernel.ahead_lines:
            # Every product fetches its part of the next panel into the second-level cache.
            part = f.add(f.mul(point, len(self.sizes)), group)
            share = self.panel_bytes // (len(self.sizes) * POINTS)
            ahead = f.address(f.address(packed, self.panel_bytes), f.mul(part, share))
            given += f", ptr {ahead}"
        f.do(f"call void @{function}({given})")

    def _product(self, size: int, architecture: Architecture) -> Dense:
        """The kernel that multiplies the patches of a group at one point."""
        c = product(size, self.c.channels, self.panels.width, False, y_stride=self.panels.width)
        schedule = Schedule(size, self.panels.vectors, unroll=self.schedule.unroll)
        name = f"{self.name}_product{size}"
        kernel = Dense(c, schedule, architecture, Epilogue(), name, self.module, BLOCK)
        if self.schedule.ahead and self.panels.count > 1:
            turns = 64 * len(self.sizes) * POINTS * kernel.turns
            kernel.ahead_lines = -(-self.panel_bytes // turns)
        return kernel

    def _patches_of(self, f: Function, group: Index, first: Index) -> str:
        """Where the transformed patches of a group are."""
        return f.address(self.patches, f.mul(f.sub(group, first), self.group_bytes))

    def _of_size(self, f: Function, group: Index, body: Callable[[int], None]) -> None:
        """body(patches) for the group: the first ones may have one more."""
        if self.larger == len(self.sizes):
            body(self.sizes[0])
            return
        _, group = self._in_image(f, group)
        large = f.compare("slt", "i64", str(group), str(self.larger))
        f.when(large, lambda: body(self.sizes[0]), lambda: body(self.sizes[-1]))

    def _each_patch(self, f: Function, group: Index, body: Callable[[str, str], None]) -> None:
        """body(place in the group, "i64 n, i64 row, i64 column") for the patches of a group."""
        image, group = self._in_image(f, group)
        before = f.max(f.sub(group, self.larger), 0)
        size = f.sub(self.sizes[0], f.convert("zext", self._is_smaller(f, group), "i1", "i64"))
        first = f.sub(f.mul(group, self.sizes[0]), before)

        def one(place: str, _: list[str]) -> None:
            number = f.add(first, place)
            row, column = f.div(number, self.width), f.rem(number, self.width)
            n, row = f.add(image, f.div(row, self.height)), f.rem(row, self.height)
            body(place, f"i64 {n}, i64 {row}, i64 {column}")

        f.loop(0, size, 1, one, guard=False)

    def _is_smaller(self, f: Function, group: Index) -> str:
        return f.compare("sge", "i64", str(group), str(self.larger))

    def _transform_group(self, f: Function, group: Index, first: Index) -> None:
        patches = self._patches_of(f, group, first)
        function = self._inputs()

        def call(place: str, at: str) -> None:
            to = f.address(patches, f.mul(place, self.row_bytes))
            f.do(f"call void @{function}(ptr %arguments, {at}, ptr {to})")

        self._each_patch(f, group, call)

    def _inputs(self) -> str:
        """The function that transforms one patch of x: all its channels."""
        name = f"{self.name}_inputs"
        if name in self.module.functions:
            return name
        parameters = {"arguments": "ptr", "n": "i64", "row": "i64", "column": "i64", "to": "ptr"}
        f = self.module.function(name, parameters, linkage="internal", attributes="noinline")
        c = self.c
        corner = [
            f.sub(f.mul(f"%{axis}", 2), before) for axis, before in zip(("row", "column"), c.before)
        ]
        offset = f.mul("%n", self.epilogue.size(f, 4 * c.x_strides[0]))
        for first, stride in zip(corner, c.x_strides[1:3]):
            offset = f.add(offset, f.mul(first, 4 * stride))
        x = f.address(f.load("ptr", "%arguments", 8 * X), offset)
        inside = ""
        for first, size in zip(corner, c.size):
            enough = f.compare("ult", "i64", str(first), str(max(0, size - 3)))
            inside = f.op(f"and i1 {inside}, {enough}") if inside else enough
        strides = [4 * s for s in c.x_strides[1:3]]
        points = [(x, i * strides[0] + j * strides[1]) for i in range(4) for j in range(4)]
        f.when(
            inside,
            lambda: self._each_vector(f, points),
            lambda: self._each_vector(f, self._clipped(f, points, corner)),
        )
        f.end()
        return name

    def _clipped(
        self, f: Function, points: list[tuple[str, int]], corner: list[Index]
    ) -> list[tuple[str, int]]:
        """The points, those outside the image moved to zeros."""
        count = self.c.channels
        zeros = self.module.constant("zeros", f"[{count} x float]", "zeroinitializer")
        inside = [
            [f.compare("ult", "i64", str(f.add(first, i)), str(size)) for i in range(4)]
            for first, size in zip(corner, self.c.size)
        ]
        clipped = []
        for number, (base, offset) in enumerate(points):
            both = f.op(f"and i1 {inside[0][number // 4]}, {inside[1][number % 4]}")
            here = f.select(both, "ptr", f.address(base, offset), zeros)
            clipped.append((here, 0))
        return clipped

    def _each_vector(self, f: Function, points: list[tuple[str, int]]) -> None:
        """The transform of each vector of channels of a patch."""
        whole, rest = divmod(self.c.channels, self.lanes)

        def one(at: Index, lanes: int) -> None:
            type = vector("float", lanes)
            moved = {base: f.address(base, at) for base in dict.fromkeys(b for b, _ in points)}
            patch = [f.load(type, moved[base], offset) for base, offset in points]
            to = f.address("%to", at)
            for point, value in enumerate(_both_axes(f, type, patch, _input_transform)):
                f.store(type, value, to, point * self.point_bytes)

        if whole:
            size = 4 * self.lanes
            f.loop(0, whole * size, size, lambda at, _: one(at, self.lanes))
        if rest:
            one(4 * whole * self.lanes, rest)

    def _outputs(self, channels: int) -> str:
        """The function that transforms the sums of a patch back, and stores its outputs."""
        name = f"{self.name}_outputs{channels}"
        if name in self.module.functions:
            return name
        parameters = {"arguments": "ptr", "n": "i64", "row": "i64", "column": "i64"}
        parameters |= {"from": "ptr", "channel": "i64"}
        f = self.module.function(name, parameters, linkage="internal", attributes="noinline")
        rows, columns = self.c.outputs

        def by_column(height: int) -> None:
            if columns % 2 == 0:
                self._finish(f, channels, height, 2)
                return
            cut = f.compare("eq", "i64", "%column", str(self.width - 1))
            f.when(
                cut,
                lambda: self._finish(f, channels, height, 1),
                lambda: self._finish(f, channels, height, 2),
            )

        if rows % 2 == 0:
            by_column(2)
        else:
            cut = f.compare("eq", "i64", "%row", str(self.height - 1))
            f.when(cut, lambda: by_column(1), lambda: by_column(2))
        f.end()
        return name

    def _finish(self, f: Function, channels: int, height: int, width: int) -> None:
        """The outputs of a patch, of which `height` x `width` lie in y."""
        origin = Origin("%arguments", ("%n", f.mul("%row", 2), f.mul("%column", 2), "%channel"))
        results = []
        for j in range(-(-channels // self.lanes)):
            lanes = min(self.lanes, channels - j * self.lanes)
            type, at = vector("float", lanes), 4 * j * self.lanes
            sums = [f.load(type, "%from", p * self.result_point + at) for p in range(POINTS)]
            outputs = _both_axes(f, type, sums, _output_transform)
            bias = self._bias(f, type, at)
            for y in range(height):
                for x in range(width):
                    value = outputs[2 * y + x]
                    value = f.binary("fadd", type, value, bias) if bias else value
                    results.append(((0, y, x, j * self.lanes), lanes, value))
        finish(f, self.epilogue, origin, self.c.y_strides, results)

    def _bias(self, f: Function, type: str, at: int) -> str:
        if not self.c.bias:
            return ""
        bias = f.load("ptr", "%arguments", 8 * BIAS)
        return f.load(type, f.address(bias, f.mul("%channel", 4)), at)


Transform = Callable[[Function, str, list[str]], list[str]]


def _both_axes(f: Function, type: str, values: list[str], transform: Transform) -> list[str]:
    """A transform of the columns of a 4 x 4 patch, then of its rows."""
    columns = [transform(f, type, values[j::4]) for j in range(4)]
    rows = [list(row) for row in zip(*columns)]
    return [value for row in rows for value in transform(f, type, row)]


def _input_transform(f: Function, type: str, d: list[str]) -> list[str]:
    """(d0 - d2, d1 + d2, d2 - d1, d1 - d3)"""
    pairs = (("fsub", 0, 2), ("fadd", 1, 2), ("fsub", 2, 1), ("fsub", 1, 3))
    return [f.binary(operation, type, d[a], d[b]) for operation, a, b in pairs]


def _output_transform(f: Function, type: str, m: list[str]) -> list[str]:
    """(m0 + m1 + m2, m1 - m2 - m3)"""
    first = f.binary("fadd", type, f.binary("fadd", type, m[0], m[1]), m[2])
    second = f.binary("fsub", type, f.binary("fsub", type, m[1], m[2]), m[3])
    return [first, second]
