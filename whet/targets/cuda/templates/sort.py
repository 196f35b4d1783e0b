"""Sorting: blocks put short runs in order, which launch after launch merges, eight at a time.

Every element finds its own place: in a run by counting those that come before it, when runs are
merged by bisection in each of the others (Satish, Harris, Garland: Designing Efficient Sorting
Algorithms for Manycore GPUs, 2009, section 5). Nothing depends on the order of blocks, and equal
keys stay in theirs.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from whet.ir.graph import Value, operator
from whet.ir.sizes import Expr, Size, product
from whet.ir.types import NUMPY_DTYPES
from whet.ops.select import Order
from whet.plan.kernel import Template
from whet.plan.target import Plain
from whet.targets.cuda import arithmetic
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.source import HEADER, Launch, Source
from whet.targets.cuda.text import Text
from whet.targets.cuda.told import blocks_of, most, reaches

KEYS = ("int32", "int64")

LONGEST_RUN = 256
"""Elements that a block puts in order by comparing each with all."""
TOGETHER = 8
"""Others that an element is compared with at a time."""
WAYS = 8
"""Runs that are merged into one."""
PART = 128
"""Elements of a block that merges: no more than a run, so that all are of the same."""
MOST_PASSES = 5
"""For lines whose length a run tells: up to 8 million elements."""
LONGEST = LONGEST_RUN * WAYS**6
"""Indices of 32 bits reach the end of the last group of longer lines no more."""


@operator
class RankSort(Order):
    """Order that this target runs whole."""


@dataclass(frozen=True)
class Tile:
    """Elements of a run, and warps that put it in order."""

    run: int
    warps: int


FULL = Tile(LONGEST_RUN, 8)


class SortTemplate(Plain):
    """Order along the last axis, of any number of lines."""

    def legalize(self, value: Value, architecture: Architecture) -> Value | None:
        if type(value.op) is not Order or value.op.descending:
            return None
        (x,) = value.inputs
        assert x is not None
        is_empty = any(isinstance(size, int) and size == 0 for size in x.shape)
        length = x.shape[-1]
        if x.dtype not in KEYS or is_empty or (isinstance(length, int) and length > LONGEST):
            return None
        order: Value = RankSort()(x)
        return order

    def tiles(self, kernel: Template, architecture: Architecture) -> list[Tile]:
        length = _keys(kernel).shape[-1]
        if isinstance(length, Expr) or length > LONGEST_RUN // 2:
            return [FULL]
        run = max(16, 1 << (length - 1).bit_length())
        return [Tile(run, max(1, run * TOGETHER // 256))]

    def close(self, kernel: Template, architecture: Architecture, factor: float) -> list[Tile]:
        """What serves lines of every length."""
        return [FULL]

    def generate(
        self, kernel: Template, architecture: Architecture, tile: Tile, name: str = "kernel"
    ) -> Source:
        return Code(kernel, architecture, tile, name).generate()


def _keys(kernel: Template) -> Any:
    (keys,) = kernel.inputs
    return keys


def passes_for(length: Size, run: int) -> int:
    """How many times runs are merged until there is one."""
    longest, passes = most(length), 0
    while run * WAYS**passes < longest and not (isinstance(length, Expr) and passes == MOST_PASSES):
        passes += 1
    return passes


class Code:
    """The functions being written, one after the other."""

    def __init__(self, kernel: Template, architecture: Architecture, tile: Tile, name: str) -> None:
        self.kernel, self.architecture, self.tile, self.name = kernel, architecture, tile, name
        keys = _keys(kernel)
        self.dtype, self.length = keys.dtype, keys.shape[-1]
        self.lines = product(keys.shape[:-1])
        self.count = self.lines * self.length
        self.passes = passes_for(self.length, tile.run)
        self.names = [f"b{n}" for n in range(len(kernel.buffers))]
        self.keys, self.order = self.names[keys.buffer], self.names[kernel.output.buffer]
        self.sides = min(self.passes, 2)
        """Copies of keys and places in scratch memory: what one launch wrote, the next reads."""
        self.each = NUMPY_DTYPES[self.dtype].itemsize

    def generate(self) -> Source:
        """Putting runs in order, then as many passes as merge all of them."""
        found = [self._function("runs", self.tile.run, self.tile.warps, self._runs)]
        for number in range(self.passes):

            def merge(text: Text, number: int = number) -> None:
                self._merge(text, number)

            found.append(self._function(f"merge{number}", PART, 4, merge))
        body = "\n\n".join(text for text, _ in found)
        return Source(HEADER + arithmetic.helpers(body) + body, tuple(call for _, call in found))

    def _function(self, what: str, each: int, warps: int, write: Any) -> tuple[str, Launch]:
        """A function whose blocks take so many elements of a line each."""
        text, name = Text(self.kernel.sizes), f"{self.name}_{what}"
        text.wait(self.architecture)
        text.line("block = tl.program_id(0)")
        blocks = blocks_of(self.length, each)
        number = text.number(blocks)
        text.line(f"begin = block % {number} * {each}")
        text.line(f"line = (block // {number}).to(tl.int64) * {text.number(self.length)}")
        text.line(f"at = begin + tl.arange(0, {each})")
        text.line(f"there = at < {text.number(self.length)}")
        write(text)
        told, scratch = text.sizes, ("scratch",) * (self.sides > 0)
        types = ("*i32", *(arithmetic.POINTER[dtype] for dtype in self.kernel.buffers))
        launch = Launch(
            name,
            (self.lines * blocks, 1, 1),
            ("error", *range(len(self.names)), *told, *scratch),
            (*types, *["i32"] * len(told), *["*i32"] * len(scratch)),
            warps,
            1,
            scratch=self.count * (self.sides * (self.each + 4)),
            reach=reaches((self.length * LONGEST_RUN, self.count), text.open),
        )
        return text.function(name, ("error", *self.names, *told.values(), *scratch)), launch

    def _kept(self, text: Text, side: int) -> tuple[str, str]:
        """Where keys and places of a line are in one side of scratch memory."""
        count = text.number(self.count)
        count = f"{count}.to(tl.int64)" if isinstance(self.count, Expr) else count
        keys = f"scratch.to(tl.pointer_type(tl.{self.dtype})) + {count} * {side} + line"
        first = self.sides * self.each // 4
        return keys, f"scratch + {count} * {first + side} + line"

    def _runs(self, text: Text) -> None:
        """A run in order: an element's place in it is how many come before."""
        run, length = self.tile.run, text.number(self.length)
        text.line(f"source = {self.keys} + line")
        text.line("key = tl.load(source + at, mask=there, other=0)")
        text.line(f"before = tl.zeros(({run}, {TOGETHER}), tl.int32)")
        text.line(f"end = tl.minimum(begin + {run}, {length})")
        with text.block(f"for first in range(begin, end, {TOGETHER}):"):
            text.line(f"others = first + tl.arange(0, {TOGETHER})")
            text.line(f"known = others < {length}")
            text.line("other = tl.load(source + others, mask=known, other=0)[None, :]")
            text.line("same = (other == key[:, None]) & (others[None, :] < at[:, None])")
            text.line("less = (other < key[:, None]) | same")
            text.line("before += (less & known[None, :]).to(tl.int32)")
        text.line("rank = begin + tl.sum(before, 1)")
        self._leave(text, run, 0, "at")

    def _merge(self, text: Text, number: int) -> None:
        """Groups of runs as one run each: an element's place in its group is how many of each run
        come before it. Lines that are in order already are left as they are."""
        run, length = self.tile.run * WAYS**number, text.number(self.length)
        keys, places = self._kept(text, number % 2)
        is_known = isinstance(self.length, int)
        with nullcontext() if is_known else text.block(f"if {length} > {run}:"):
            text.line(f"keys = {keys}")
            text.line("key = tl.load(keys + at, mask=there, other=0)")
            text.line(f"place = tl.load({places} + at, mask=there, other=0)")
            text.line(f"group = begin // {run * WAYS} * {run * WAYS}")
            text.line(f"own = begin // {run} * {run}")
            text.line(f"start = (group + tl.arange(0, {WAYS}) * {run})[None, :]")
            text.line(f"size = tl.minimum(tl.maximum({length} - start, 0), {run})")
            text.line("rank = tl.where(start == own, (at - own)[:, None], 0)")
            with text.block(f"for turn in range({run.bit_length()}):"):
                text.line(f"probe = rank + ({run} >> turn)")
                text.line("inside = there[:, None] & (start != own) & (probe <= size)")
                text.line("other = tl.load(keys + start + probe - 1, mask=inside, other=0)")
                text.line("same = (other == key[:, None]) & (start < own)")
                text.line("less = (other < key[:, None]) | same")
                text.line("rank = tl.where(inside & less, probe, rank)")
            text.line("rank = group + tl.sum(rank, 1)")
            self._leave(text, run * WAYS, (number + 1) % 2, "place")

    def _leave(self, text: Text, run: int, side: int, place: str) -> None:
        """Writes the order where lines are one run by now, else what the next launch needs."""

        def finish() -> None:
            text.line(f"tl.store({self.order} + line + rank, {place}.to(tl.int64), mask=there)")

        def keep() -> None:
            keys, places = self._kept(text, side)
            text.line(f"tl.store({keys} + rank, key, mask=there)")
            text.line(f"tl.store({places} + rank, {place}, mask=there)")

        if not isinstance(self.length, Expr):
            finish() if self.length <= run else keep()
            return
        with text.block(f"if {text.number(self.length)} <= {run}:"):
            finish()
        if most(self.length) > run and self.sides:
            with text.block("else:"):
                keep()
