"""Non-maximum suppression: a block for each class takes the best box that is left, again and again,
and drops those that overlap it too much.

What passes the score is listed first, so that each turn meets only that. A second launch puts the
rows of all classes one behind the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from whet.ir.graph import Value, operator
from whet.ops.select import Suppression
from whet.plan.kernel import Template
from whet.plan.target import Plain
from whet.targets.cuda import arithmetic
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.source import HEADER, Launch, Source
from whet.targets.cuda.templates.contraction import integer
from whet.targets.cuda.text import Text

SIDES = ("y", "x", "yy", "xx", "area")
ROOM = 2 + len(SIDES) + 1
"""32-bit words for each box of a class: a key of two words, the box, and the number of one that is
kept."""
MOST_LANES = 1024
NEVER = 2**63 - 1  # a key behind all others


@operator
class GreedySuppression(Suppression):
    """Suppression that this target runs whole."""


@dataclass(frozen=True)
class Tile:
    """Boxes that a block meets at once."""

    lanes: int
    warps: int


class SuppressionTemplate(Plain):
    """Suppression with corners in any order or centers, and any of the three limits."""

    def legalize(self, value: Value, architecture: Architecture) -> Any:
        there = [i for i in value.inputs if i is not None]
        if type(value.op) is not Suppression:
            return None
        if not all(i.tensor.is_static and 0 not in i.shape for i in there):
            return None
        return GreedySuppression(value.op.center)(*value.inputs)

    def tiles(self, kernel: Template, architecture: Architecture) -> list[Tile]:
        boxes = kernel.inputs[0]
        assert boxes is not None
        lanes = min(MOST_LANES, max(32, 1 << (integer(boxes.shape[1]) - 1).bit_length()))
        return [Tile(lanes, max(1, lanes // 128))]

    def generate(self, kernel: Template, architecture: Architecture, tile: Tile) -> Source:
        return Code(kernel, architecture, tile).generate()


class Code:
    """Both functions being written."""

    def __init__(self, kernel: Template, architecture: Architecture, tile: Tile) -> None:
        assert isinstance(kernel.op, GreedySuppression)
        self.kernel, self.architecture, self.tile = kernel, architecture, tile
        self.center = kernel.op.center
        views = (*kernel.inputs, *[None] * (5 - len(kernel.inputs)))
        boxes, scores = views[:2]
        assert boxes is not None and scores is not None
        self.batches, self.count = (integer(n) for n in boxes.shape[:2])
        self.classes = integer(scores.shape[1])
        self.names = [f"b{n}" for n in range(len(kernel.buffers))]
        self.inputs = [None if v is None else self.names[v.buffer] for v in views]
        self.lines = self.batches * self.classes
        self.text = Text()

    def generate(self) -> Source:
        """Choosing in every class, then the rows of all of them."""
        functions = (("choose", self._choose), ("gather", self._gather))
        # The numbers of boxes that are kept stand behind the room of all classes.
        scratch = 4 * (self.lines * self.count * ROOM + self.lines)
        bodies: list[str] = []
        launches: list[Launch] = []
        for name, write in functions:
            self.text = Text()
            self.text.wait(self.architecture)
            self.text.line("line = tl.program_id(0).to(tl.int64)")
            self.text.line(f"room = scratch + line * {self.count * ROOM}")
            self.text.line(f"numbers = scratch + {self.lines * self.count * ROOM}")
            write()
            bodies.append(self.text.function(name, ("error", *self.names, "scratch")))
            launches.append(
                Launch(
                    name,
                    (self.lines, 1, 1),
                    ("error", *range(len(self.names)), "scratch"),
                    ("*i32", *(arithmetic.POINTER[d] for d in self.kernel.buffers), "*i32"),
                    self.tile.warps,
                    1,
                    scratch=scratch,
                )
            )
        text = "\n\n".join(bodies)
        return Source(HEADER + arithmetic.helpers(text) + text, tuple(launches))

    def _choose(self) -> None:
        text, lanes = self.text, f"tl.arange(0, {self.tile.lanes})"
        text.line("keys = room.to(tl.pointer_type(tl.int64))")
        for number, side in enumerate(SIDES):
            place = f"room + {(2 + number) * self.count}"
            text.line(f"{side}s = ({place}).to(tl.pointer_type(tl.float32))")
        text.line(f"kept = room + {(2 + len(SIDES)) * self.count}")
        most, overlap = self.inputs[2:4]
        text.line(f"most = tl.load({most})" if most else "most = 0")
        text.line(f"limit = tl.load({overlap})" if overlap else "limit = 0.0")
        text.line(f"lanes = {lanes}")
        text.line(f"best = tl.full((), {NEVER}, tl.int64)")
        text.line("found = 0")
        with text.block(f"for begin in range(0, {self.count}, {self.tile.lanes}):"):
            self._list()
        text.line("tl.debug_barrier()")
        text.line("number = 0")
        with text.block(f"while (number < most) & (best != {NEVER}):"):
            self._keep()
        text.line("tl.store(numbers + line, number)")

    def _list(self) -> None:
        """Appends the boxes whose score is high enough, with keys that rise as scores fall."""
        text, score = self.text, self.inputs[4]
        text.line("box = begin + lanes")
        text.line(f"there = box < {self.count}")
        where = f"{self.inputs[1]} + line * {self.count} + box"
        text.line(f"score = tl.load({where}, mask=there, other=0)")
        text.line(f"passes = there & (score > tl.load({score}))" if score else "passes = there")
        # Subtracting from zero makes both zeros the same one; NaN comes behind all numbers.
        text.line("bits = (0.0 - score).to(tl.int32, bitcast=True)")
        text.line(f"order = tl.where(bits < 0, bits ^ {2**31 - 1}, bits)")
        text.line(f"order = tl.where(score != score, {2**31 - 1}, order)")
        text.line("key = order.to(tl.int64) * 4294967296 + box")
        text.line("flag = passes.to(tl.int32)")
        text.line("at = found + tl.cumsum(flag, 0) - flag")
        self._corners("box", ", mask=passes, other=0")
        text.line("tl.store(keys + at, key, mask=passes)")
        for side in SIDES:
            text.line(f"tl.store({side}s + at, {side}, mask=passes)")
        text.line(f"best = tl.minimum(best, tl.min(tl.where(passes, key, {NEVER}), 0))")
        text.line("found += tl.sum(flag, 0)")

    def _corners(self, box: str, where: str = "") -> None:
        """The low and the high end of both axes of a box, and its area."""
        at = f"{self.inputs[0]} + ((line // {self.classes}) * {self.count} + {box}) * 4"
        for n, name in enumerate("abcd"):
            self.text.line(f"{name} = tl.load({at} + {n}{where})")
        for low, high, a, b in (("y", "yy", "a", "c"), ("x", "xx", "b", "d")):
            for side, value in zip((low, high), self._ends(a, b)):
                self.text.line(f"{side} = {value}")
        self.text.line("area = libdevice.mul_rn(yy - y, xx - x)")

    def _ends(self, a: str, b: str) -> tuple[str, str]:
        """The low and the high end of one axis, from both of them or from middle and size."""
        if self.center:
            return f"{a} - {b} * 0.5", f"{a} + {b} * 0.5"
        low, high = (arithmetic.extreme(kind, "float32", a, b) for kind in ("min", "max"))
        return low, high

    def _keep(self) -> None:
        """Keeps the best box, drops those that overlap it, and finds the best of the others."""
        text, lanes = self.text, self.tile.lanes
        text.line("mine = best & 4294967295")
        text.line("tl.store(kept + number, mine.to(tl.int32))")
        text.line("number += 1")
        text.line("top = best")
        text.line(f"best = tl.full((), {NEVER}, tl.int64)")
        self._corners("mine")
        with text.block(f"for begin in range(0, found, {lanes}):"):
            text.line("at = begin + lanes")
            text.line("there = at < found")
            text.line(f"key = tl.load(keys + at, mask=there, other={NEVER})")
            for side in SIDES:
                text.line(f"{side}o = tl.load({side}s + at, mask=there, other=0)")
            text.line(f"drops = there & ((key == top) | ({self._exceeds()}))")
            text.line(f"key = tl.where(drops, {NEVER}, key)")
            text.line("tl.store(keys + at, key, mask=drops)")
            text.line("best = tl.minimum(best, tl.min(key, 0))")
        text.line("tl.debug_barrier()")

    def _exceeds(self) -> str:
        """Intersection over union above the limit; 0 where a box has no area. Products are rounded
        before they are added to, as elsewhere."""
        text = self.text
        for low, high in (("y", "yy"), ("x", "xx")):
            start = arithmetic.extreme("max", "float32", low, f"{low}o")
            end = arithmetic.extreme("min", "float32", high, f"{high}o")
            common = arithmetic.extreme("max", "float32", f"({end}) - ({start})", "0.0")
            text.line(f"{low}c = {common}")
        text.line("common = libdevice.mul_rn(yc, xc)")
        text.line("union = area + areao - common")
        text.line("real = (area > 0.0) & (areao > 0.0) & (union > 0.0)")
        text.line("ratio = tl.math.div_rn(common, tl.where(real, union, 1.0))")
        return "tl.where(real, ratio, 0.0) > limit"

    def _gather(self) -> None:
        """A class's rows behind those of the classes before it; the last class knows how many there
        are."""
        text, lanes = self.text, self.tile.lanes
        rows, number = self.names[-2:]
        text.line("before = 0")
        text.line(f"lanes = tl.arange(0, {lanes})")
        with text.block(f"for begin in range(0, {self.lines}, {lanes}):"):
            text.line("at = begin + lanes")
            text.line("before += tl.sum(tl.load(numbers + at, mask=at < line, other=0), 0)")
        text.line("own = tl.load(numbers + line)")
        text.line(f"kept = room + {(2 + len(SIDES)) * self.count}")
        with text.block(f"for begin in range(0, own, {lanes}):"):
            text.line("at = begin + lanes")
            text.line("there = at < own")
            text.line("box = tl.load(kept + at, mask=there, other=0).to(tl.int64)")
            text.line(f"to = {rows} + (before + at).to(tl.int64) * 3")
            values = (f"line // {self.classes}", f"line % {self.classes}", "box")
            for n, value in enumerate(values):
                text.line(f"tl.store(to + {n}, box * 0 + {value}, mask=there)")
        with text.block(f"if line == {self.lines - 1}:"):
            text.line(f"tl.store({number}, (before + own).to(tl.int64))")
