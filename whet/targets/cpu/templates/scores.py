"""Rows of attention scores: capped, masked, and reduced across lanes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from whet.targets.cpu import functions
from whet.targets.cpu.llvm import Function, Index, array_literal, literal, split_type, vector
from whet.targets.cpu.reductions import lane_mask

if TYPE_CHECKING:
    from whet.targets.cpu.templates.flash_tile import FlashTile


class ScoreRow:
    """One row of scores on its way through cap, mask and bounds."""

    def __init__(self, tile: FlashTile, r: str, head: Index, i: Index) -> None:
        self.tile, self.f, self.p = tile, tile.f, tile.p
        self.type, self.lanes = tile.type, tile.lanes
        f, op = self.f, tile.p.op
        self.scores = f.address("%scores", f.mul(r, tile.code.pitch))
        self.low = self.high = ""
        if op.right is not None:
            bound = f.sub(f.add(i, int(op.offset) + op.right + 1), "%start")
            self.high = self._lanes(f.max(f.min(bound, "%count"), 0))
        elif op.left is not None:
            self.high = self._lanes("%count")
        if op.left is not None:
            self.low = self._lanes(f.max(f.sub(f.add(i, int(op.offset) - op.left), "%start"), 0))
        self.mask = self.flat_mask = ""
        if (m := tile.p.mask) is not None:
            steps = [tile.told(4 * stride) for stride in m.strides[1:3]]
            offset = f.add(f.mul(head, steps[0]), f.mul(i, steps[1]))
            self.mask = f.address(tile.mask_base, f.add(offset, f.mul("%start", 4 * m.strides[3])))
            if m.strides[3] == 0:
                self.flat_mask = f.splat(self.type, f.load("float", self.mask))

    def _lanes(self, i: Index) -> str:
        """The number in each lane, as an i32."""
        f = self.f
        number = str(i) if isinstance(i, int) else f.convert("trunc", i, "i64", "i32")
        return f.splat(vector("i32", self.lanes), number)

    def each(
        self, begin: Index, end: Index, body: Callable[[Index, str, str], str], first: str
    ) -> str:
        """`body(key, carried, mask)` for each vector of keys; the mask is "" for all lanes."""
        f, lanes = self.f, self.lanes
        carried = [(self.type, first)]
        if self.p.bounded:
            padded = f.mul(f.div(f.add(end, lanes - 1), lanes), lanes)
            return f.loop(
                begin, padded, lanes, lambda j, c: [body(j, c[0], self._inside(j))], carried, False
            )[0]
        whole = f.mul(f.div(end, lanes), lanes)
        value = f.loop(begin, whole, lanes, lambda j, c: [body(j, c[0], "")], carried, True)[0]
        rest = f.rem(end, lanes)
        if isinstance(self.p.keys, int):
            # Only the last block has a rest, and there it is always the same.
            rest = self.p.keys % lanes
        if rest == 0:
            return value
        mask = lane_mask(f, rest, lanes)
        some = f.op(f"icmp slt i64 {whole}, {end}")
        return f.when(some, lambda: [body(whole, value, mask)], lambda: [value], [self.type])[0]

    def _inside(self, j: Index) -> str:
        f, kind = self.f, vector("i32", self.lanes)
        key = f.binary("add", kind, self._lanes(j), array_literal(kind, range(self.lanes)))
        inside = f.compare("slt", kind, key, self.high)
        if self.low:
            near = f.compare("sge", kind, key, self.low)
            inside = f.binary("and", vector("i1", self.lanes), inside, near)
        return inside

    def largest(self, j: Index, high: str, inside: str) -> str:
        """Finishes a vector of scores, and takes it into the maximum."""
        f, type = self.f, self.type
        at = f.address(self.scores, f.mul(j, 4))
        x = raw = f.load(type, at, 0, self.tile.size)
        if (cap := self.p.op.softcap) > 0:
            x = functions.tanh(f, type, f.binary("fmul", type, x, literal(type, 1 / cap)))
            x = f.binary("fmul", type, x, literal(type, cap))
        if self.mask:
            x = f.binary("fadd", type, x, self.flat_mask or self._masked(j, inside))
        if inside:
            x = f.select(inside, type, x, literal(type, -np.inf))
        if x != raw:
            f.store(type, x, at, 0, self.tile.size)
        return maximum(f, type, x, high)

    def _masked(self, j: Index, inside: str) -> str:
        """The mask's elements for a vector of keys."""
        f, m = self.f, self.p.mask
        assert m is not None
        at = f.address(self.mask, f.mul(j, 4 * m.strides[3]))
        if m.strides[3] == 1:
            return f.masked_load(self.type, inside, at) if inside else f.load(self.type, at)
        steps = array_literal(
            vector("i64", self.lanes), [4 * m.strides[3] * n for n in range(self.lanes)]
        )
        pointers = f.op(f"getelementptr i8, ptr {at}, {vector('i64', self.lanes)} {steps}")
        lanes = inside or "splat (i1 true)"
        return f.call(
            self.type,
            f"llvm.masked.gather.v{self.lanes}f32.v{self.lanes}p0",
            [
                (f"{vector('ptr', self.lanes)} align 4", pointers),
                (vector("i1", self.lanes), lanes),
                (self.type, "zeroinitializer"),
            ],
        )


def maximum(f: Function, type: str, a: str, b: str) -> str:
    """The greater one; b where a is NaN."""
    return f.select(f.compare("ogt", type, a, b), type, a, b)


def across(f: Function, type: str, value: str, combine: Callable[[str, str, str], str]) -> str:
    """All lanes of a vector combined, half by half."""
    element, lanes = split_type(type)
    while lanes > 1:
        kind, half = vector(element, lanes), lanes // 2
        if half == 1:
            low, high = f.extract(kind, value, 0), f.extract(kind, value, 1)
        else:
            low = f.shuffle(kind, value, "poison", range(half))
            high = f.shuffle(kind, value, "poison", range(half, lanes))
        value, lanes = combine(vector(element, half), low, high), half
    return value
