"""Non-maximum suppression: boxes by falling score, each compared with all that were kept before it.

One thread goes through batches and classes: what passes the score is little, so that reading the
scores is most of the work.
"""

from __future__ import annotations

from typing import Any

from whet.ir.graph import Value, operator
from whet.ir.types import TensorType
from whet.ops.select import Suppression
from whet.plan.kernel import Template
from whet.plan.target import Plain
from whet.targets.cpu.architecture import Architecture
from whet.targets.cpu.llvm import Function, Index, Module, literal, vector
from whet.targets.cpu.reductions import lane_mask
from whet.targets.cpu.templates.results import named_sizes
from whet.targets.cpu.templates.sort import Line, passes_for

ROOM = 10
"""32-bit words that a box takes to work with: two places, a key, four corners and an area; and to
spare for whole vectors."""
SIDES = 5  # of a kept box: four corners and the area, each in an array of its own


@operator
class SortedSuppression(Suppression):
    """Suppression that this target runs whole; the third result is room to work in."""

    def infer(self, boxes: TensorType, scores: TensorType, *limits: TensorType | None) -> Any:
        room = TensorType("int32", ((boxes.shape[1] + 16) * ROOM,))
        return (*super().infer(boxes, scores, *limits), room)

    def reference(self, boxes: Any, scores: Any, *limits: Any) -> Any:
        raise NotImplementedError("the room that a kernel works in has no meaning")


class SuppressionTemplate(Plain):
    """Suppression with corners in any order or centers, and any of the three limits."""

    def legalize(self, value: Value, architecture: Architecture) -> Any:
        if type(value.op) is not Suppression:
            return None
        rows, number, _ = SortedSuppression(value.op.center)(*value.inputs)
        return rows, number

    def generate(self, kernel: Template, architecture: Architecture, name: str) -> Module:
        module = Module(architecture.vector_bytes * 8)
        f = module.function(name, {"args": "ptr noalias", "thread": "i64", "threads": "i64"})
        first = f.op("icmp eq i64 %thread, 0")
        f.when(first, lambda: SuppressionCode(f, kernel, architecture.vector_bytes // 4).emit())
        f.end()
        return module


class SuppressionCode:
    """The code of one suppression."""

    def __init__(self, f: Function, kernel: Template, lanes: int) -> None:
        self.f, self.lanes = f, lanes
        self.center = kernel.op.center  # type: ignore[attr-defined]
        views = (*kernel.inputs, *(None,) * (5 - len(kernel.inputs)))
        boxes, scores = views[:2]
        assert boxes is not None and scores is not None
        sizes = (*boxes.shape[:2], scores.shape[1])
        self.batches, self.count, self.classes = (named_sizes(kernel).index(f, s) for s in sizes)
        pointers = [f.load("ptr", "%args", 8 * (n + 1)) for n in range(len(kernel.buffers))]
        inputs = [None if v is None else pointers[v.buffer] for v in views]
        self.boxes, self.scores = inputs[0] or "", inputs[1] or ""
        self.most = f.load("i64", inputs[2]) if inputs[2] else "0"
        self.overlap = f.load("float", inputs[3]) if inputs[3] else literal("float", 0.0)
        self.score = f.load("float", inputs[4]) if inputs[4] else None
        self.rows, self.number, room = pointers[-3:]
        padded = f.add(self.count, 16)
        self.places = [f.address(room, f.mul(padded, 8 * n)) for n in range(2)]
        self.keys = f.address(room, f.mul(padded, 16))
        self.kept = [f.address(room, f.mul(padded, 20 + 4 * n)) for n in range(SIDES)]

    def emit(self) -> None:
        f = self.f

        def one(n: str, carried: list[str]) -> list[str]:
            batch = f.div(n, self.classes)
            boxes = f.address(self.boxes, f.mul(batch, f.mul(self.count, 16)))
            found = self.candidates(f.address(self.scores, f.mul(n, f.mul(self.count, 4))))
            line = Line(f, "i32", self.keys, found)
            first, second = self.places
            order = line.merge_passes(first, second, passes_for(f, found))
            row = (batch, f.rem(n, self.classes))
            return [self.keep(boxes, order, found, row, carried[0])]

        (total,) = f.loop(0, f.mul(self.batches, self.classes), 1, one, [("i64", "0")])
        f.store("i64", total, self.number)

    def candidates(self, scores: str) -> str:
        """Lists the boxes whose score is high enough, with keys that rise as scores fall."""
        f = self.f

        def one(i: str, carried: list[str]) -> list[str]:
            (found,) = carried
            score = f.load("float", scores, f.mul(i, 4))
            f.store("i64", i, self.places[0], f.mul(found, 8))
            f.store("i32", self.key(score), self.keys, f.mul(i, 4))
            if self.score is None:
                return [str(f.add(found, 1))]
            passes = f.compare("ogt", "float", score, self.score)
            return [str(f.add(found, f.op(f"zext i1 {passes} to i64")))]

        return f.loop(0, self.count, 1, one, [("i64", "0")])[0]

    def key(self, score: str) -> str:
        """An i32 in the order of -score, zeros equal; NaN is the greatest."""
        f = self.f
        # Subtracting from zero makes both zeros the same one.
        x = f.binary("fsub", "float", literal("float", 0.0), score)
        bits = f.convert("bitcast", x, "float", "i32")
        mirrored = f.op(f"xor i32 {bits}, {2**31 - 1}")
        key = f.select(f.compare("slt", "i32", bits, "0"), "i32", mirrored, bits)
        return f.select(f.compare("uno", "float", x, x), "i32", str(2**31 - 1), key)

    def keep(self, boxes: str, order: str, found: str, row: tuple[Index, Index], total: str) -> str:
        """Appends the rows of one class; how many there are then."""
        f = self.f

        def one(n: str, carried: list[str]) -> list[str]:
            kept, rows = carried
            box = f.load("i64", order, f.mul(n, 8))

            def compare() -> list[str]:
                sides = self.sides(boxes, box)
                return f.when(
                    self.is_suppressed(sides, kept),
                    lambda: carried,
                    lambda: self.append(sides, (*row, box), kept, rows),
                    ["i64", "i64"],
                )

            open_ = f.op(f"icmp slt i64 {kept}, {self.most}")
            return f.when(open_, compare, lambda: carried, ["i64", "i64"])

        return f.loop(0, found, 1, one, [("i64", "0"), ("i64", total)])[1]

    def sides(self, boxes: str, box: str) -> list[str]:
        """A box as low and high corners, and its area."""
        f = self.f
        a, b, c, d = (f.load("float", boxes, f.add(f.mul(box, 16), 4 * n)) for n in range(4))
        pairs = [self.ends(a, c), self.ends(b, d)]
        extents = [f.binary("fsub", "float", high, low) for low, high in pairs]
        (y, yy), (x, xx) = pairs
        return [y, x, yy, xx, f.binary("fmul", "float", *extents)]

    def ends(self, a: str, b: str) -> tuple[str, str]:
        """The low and the high end of one axis, from both of them or from middle and size."""
        f = self.f
        if not self.center:
            return tuple(f.intrinsic(f"llvm.{n}imum", "float", a, b) for n in ("min", "max"))  # type: ignore[return-value]
        half = f.binary("fmul", "float", b, literal("float", 0.5))
        return f.binary("fsub", "float", a, half), f.binary("fadd", "float", a, half)

    def append(
        self, sides: list[str], row: tuple[Index, Index, Index], kept: str, rows: str
    ) -> list[str]:
        f = self.f
        for side, base in zip(sides, self.kept):
            f.store("float", side, base, f.mul(kept, 4))
        for n, number in enumerate(row):
            f.store("i64", str(number), self.rows, f.add(f.mul(rows, 24), 8 * n))
        return [str(f.add(kept, 1)), str(f.add(rows, 1))]

    def is_suppressed(self, sides: list[str], kept: str) -> str:
        """Whether the box overlaps one that was kept by more than is allowed."""
        f, lanes = self.f, self.lanes
        kind, mask = vector("float", lanes), vector("i1", lanes)
        mine = [f.splat(kind, side) for side in sides]

        def block(j: str, carried: list[str]) -> list[str]:
            there = [f.load(kind, base, f.mul(j, 4)) for base in self.kept]
            over = f.binary(
                "and",
                mask,
                self.exceeds(kind, mine, there),
                lane_mask(f, str(f.sub(kept, j)), lanes),
            )
            some = f.call("i1", f"llvm.vector.reduce.or.v{lanes}i1", [(mask, over)])
            return [f.op(f"or i1 {carried[0]}, {some}")]

        return f.loop(0, kept, lanes, block, [("i1", "false")])[0]

    def exceeds(self, kind: str, mine: list[str], there: list[str]) -> str:
        """Intersection over union above the limit, lane by lane; never where a box has no area."""
        f, zero = self.f, literal(kind, 0.0)
        mask = vector("i1", self.lanes)
        extents = []
        for low, high in ((0, 2), (1, 3)):
            start = f.intrinsic("llvm.maximum", kind, mine[low], there[low])
            end = f.intrinsic("llvm.minimum", kind, mine[high], there[high])
            extents.append(
                f.intrinsic("llvm.maximum", kind, f.binary("fsub", kind, end, start), zero)
            )
        common = f.binary("fmul", kind, *extents)
        union = f.binary("fsub", kind, f.binary("fadd", kind, mine[4], there[4]), common)
        ratio = f.binary("fdiv", kind, common, union)
        real = [f.compare("ogt", kind, x, zero) for x in (mine[4], there[4], union)]
        limit = f.splat(kind, self.overlap)
        over = f.compare("ogt", kind, ratio, limit)
        # Boxes that have nothing in common overlap by 0, which may exceed a limit below it.
        return f.select(
            f.binary("and", mask, f.binary("and", mask, *real[:2]), real[2]),
            mask,
            over,
            f.compare("ogt", kind, zero, limit),
        )
