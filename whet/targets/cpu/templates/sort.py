"""Sorting: the order of each line's keys, by merging longer and longer runs.

Bottom-up merge sort keeps equal keys in order and takes the same time for any input (Knuth, The Art
of Computer Programming 3, 5.2.4).
"""

from __future__ import annotations

from typing import Any

from whet.ir.graph import Value, operator
from whet.ir.types import TensorType
from whet.ops.select import Order
from whet.plan.kernel import Template
from whet.plan.target import Plain
from whet.targets.cpu.architecture import Architecture
from whet.targets.cpu.llvm import Function, Index, Module
from whet.targets.cpu.templates.results import named_sizes

KEYS = {"int32": "i32", "int64": "i64"}


@operator
class MergeSort(Order):
    """The order of int32 or int64 keys; the second result is room to work in."""

    def infer(self, x: TensorType) -> Any:
        order = super().infer(x)
        return order, order

    def reference(self, x: Any) -> Any:
        order = super().reference(x)
        return order, order


class SortTemplate(Plain):
    """Order along the last axis; threads share lines."""

    def legalize(self, value: Value, architecture: Architecture) -> Value | None:
        (x, *_) = value.inputs or (None,)
        if type(value.op) is not Order or value.op.descending or x is None or x.dtype not in KEYS:
            return None
        order: Value = MergeSort()(x)[0]
        return order

    def generate(self, kernel: Template, architecture: Architecture, name: str) -> Module:
        module = Module(architecture.vector_bytes * 8)
        f = module.function(name, {"args": "ptr noalias", "thread": "i64", "threads": "i64"})
        (keys,) = kernel.inputs
        assert keys is not None
        named = named_sizes(kernel)
        *lead, size = (named.index(f, s) for s in keys.shape)
        pointers = [f.load("ptr", "%args", 8 * (n + 1)) for n in range(3)]
        rows: Index = 1
        for count in lead:
            rows = f.mul(count, rows)
        low = f.op(f"udiv i64 {f.mul('%thread', rows)}, %threads")
        high = f.op(f"udiv i64 {f.mul(f.add('%thread', 1), rows)}, %threads")
        kind = KEYS[keys.dtype]
        wide = 4 if kind == "i32" else 8

        def line(row: str, _: list[str]) -> None:
            steps = (wide, 8, 8)
            start = f.mul(row, size)
            at, *buffers = (f.address(p, f.mul(start, n)) for p, n in zip(pointers, steps))
            passes = passes_for(f, size)
            # The last pass must end in the result, which is the first of the buffers.
            first, second = in_turns(f, passes, buffers)
            f.loop(0, size, 1, lambda i, _: f.store("i64", i, first, f.mul(i, 8)))
            Line(f, kind, at, size).merge_passes(first, second, passes)

        if size != 0:
            f.loop(low, high, 1, line)
        f.end()
        return module


def passes_for(f: Function, count: Index) -> Index:
    """As many passes as the number of elements, less one, has bits."""
    if isinstance(count, int):
        return (count - 1).bit_length()
    below = str(f.max(f.sub(count, 1), 0))
    return f.sub(64, f.call("i64", "llvm.ctlz.i64", [("i64", below), ("i1", "false")]))


def in_turns(f: Function, passes: Index, buffers: list[str]) -> list[str]:
    """The buffers in the order in which so many passes end in the first one."""
    if isinstance(passes, int):
        return buffers if passes % 2 == 0 else buffers[::-1]
    even = f.op(f"icmp eq i64 {f.rem(passes, 2)}, 0")
    return [f.select(even, "ptr", a, b) for a, b in zip(buffers, buffers[::-1])]


class Line:
    """Keys, and the order of some of them, in two buffers in turns."""

    def __init__(self, f: Function, kind: str, keys: str, size: Index) -> None:
        self.f, self.kind, self.keys, self.size = f, kind, keys, size
        self.wide = 4 if kind == "i32" else 8
        self.last = f.sub(size, 1)

    def merge_passes(self, first: str, second: str, passes: Index) -> str:
        """Sorts the places in `first`; the buffer in which they are in order in the end."""
        f = self.f

        def one(_: str, carried: list[str]) -> list[str]:
            source, target, width = carried
            self.merge_all(source, target, width)
            return [target, source, f.op(f"shl i64 {width}, 1")]

        return f.loop(0, passes, 1, one, [("ptr", first), ("ptr", second), ("i64", "1")])[0]

    def merge_all(self, source: str, target: str, width: str) -> None:
        """Pairs of sorted runs of `width` to runs of twice that."""
        f = self.f
        pair = f.op(f"shl i64 {width}, 1")
        count = f.op(f"udiv i64 {f.add(f.sub(pair, 1), self.size)}, {pair}")

        def merge(n: str, _: list[str]) -> None:
            low = f.mul(n, pair)
            middle = f.min(f.add(low, width), self.size)
            high = f.min(f.add(low, pair), self.size)
            self.merge(source, target, low, middle, high)

        f.loop(0, count, 1, merge)

    def merge(self, source: str, target: str, low: Index, middle: Index, high: Index) -> None:
        """The smaller of both fronts, again and again; the left one where they are equal."""
        f = self.f

        def turn(p: str, carried: list[str]) -> list[str]:
            i, j = carried
            (a, ka), (b, kb) = self.front(source, i), self.front(source, j)
            left = f.op(f"icmp slt i64 {i}, {middle}")
            right = f.op(f"icmp slt i64 {j}, {high}")
            ordered = f.op(f"icmp sle {self.kind} {ka}, {kb}")
            only = f.op(f"xor i1 {right}, true")
            take = f.op(f"and i1 {left}, {f.op(f'or i1 {only}, {ordered}')}")
            f.store("i64", f.op(f"select i1 {take}, i64 {a}, i64 {b}"), target, f.mul(p, 8))
            step = f.op(f"zext i1 {take} to i64")
            return [str(f.add(i, step)), str(f.add(j, f.sub(1, step)))]

        f.loop(low, high, 1, turn, [("i64", str(low)), ("i64", str(middle))])

    def front(self, source: str, i: str) -> tuple[str, str]:
        """The element at a run's front and its key; the line's last one behind the end."""
        f = self.f
        at = f.min(i, self.last)
        element = f.load("i64", source, f.mul(at, 8))
        return element, f.load(self.kind, self.keys, f.mul(element, self.wide))
