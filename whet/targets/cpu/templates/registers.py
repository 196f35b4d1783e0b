"""Parts of products: tiles of sums in registers, dot products along lanes, copies into panels."""

from __future__ import annotations

from dataclasses import dataclass

from whet.targets.cpu.llvm import Function, Index, Module, literal, vector
from whet.targets.cpu.reductions import lane_mask
from whet.targets.cpu.transpose import transpose

At = tuple[str, int]
"""An address: a register and an offset in bytes."""


@dataclass(frozen=True)
class RegisterTile:
    """rows x vectors of sums; each step multiplies a row's element by the step's vectors.

    Distances are in bytes: `left_row` between rows, the others from one step to the next. The
    vectors of a step lie side by side; of the last one only `columns` are read where it says so.
    """

    lanes: int
    rows: int
    vectors: int
    left_row: int
    left_step: int
    right_step: int
    unroll: int
    columns: int = 0
    aligned: bool = True

    @property
    def type(self) -> str:
        return vector("float", self.lanes)

    @property
    def zeros(self) -> list[str]:
        return [literal(self.type, 0.0)] * (self.rows * self.vectors)

    def sum(self, f: Function, left: str, right: str, steps: Index, sums: list[str]) -> list[str]:
        """The sums after so many steps, `unroll` of them a turn."""
        whole = f.mul(f.div(steps, self.unroll), self.unroll)
        for low, high, count in ((0, whole, self.unroll), (whole, steps, 1)):
            if low != high:
                sums = self._loop(f, (left, right), (low, high), count, sums)
        return sums

    def _loop(
        self,
        f: Function,
        bases: tuple[str, str],
        bounds: tuple[Index, Index],
        count: int,
        sums: list[str],
    ) -> list[str]:
        def turn(k: str, values: list[str]) -> list[str]:
            left = f.address(bases[0], f.mul(k, self.left_step))
            right = f.address(bases[1], f.mul(k, self.right_step))
            for u in range(count):
                here = (left, u * self.left_step), (right, u * self.right_step)
                values = self._step(f, *here, values)
            return values

        return f.loop(*bounds, count, turn, [(self.type, s) for s in sums])

    def _step(self, f: Function, left: At, right: At, sums: list[str]) -> list[str]:
        row = [self._vector(f, right, v) for v in range(self.vectors)]
        result: list[str] = []
        for r in range(self.rows):
            element = f.splat(self.type, f.load("float", left[0], left[1] + r * self.left_row))
            before = sums[r * self.vectors : (r + 1) * self.vectors]
            result += [f.fma(self.type, element, *pair) for pair in zip(row, before)]
        return result

    def _vector(self, f: Function, right: At, v: int) -> str:
        size = self.lanes * 4
        at = right[1] + v * size
        count = self.columns - v * self.lanes if self.columns else self.lanes
        if count < self.lanes:
            return f.masked_load(self.type, lane_mask(f, count, self.lanes), right[0], at)
        return f.load(self.type, right[0], at, size if self.aligned else 4)


def dots(
    f: Function, lanes: int, row: str, columns: str, distance: int, count: int, depth: int
) -> str:
    """The products of a row with `count` columns, one lane each; `distance` is in bytes.

    Elements of the row and of a column are neighbours, and lanes run along them first.
    """
    type = vector("float", lanes)
    whole = depth // lanes * lanes

    def step(k: Index, totals: list[str], mask: str) -> list[str]:
        def load(base: str, offset: int) -> str:
            at = f.address(base, f.mul(k, 4))
            if mask:
                return f.masked_load(type, mask, at, offset)
            return f.load(type, at, offset)

        x = load(row, 0)
        return [f.fma(type, x, load(columns, c * distance), t) for c, t in enumerate(totals)]

    totals = [literal(type, 0.0)] * count
    if whole:
        carried = [(type, t) for t in totals]
        totals = f.loop(0, whole, lanes, lambda k, t: step(k, t, ""), carried)
    if whole < depth:
        totals = step(whole, totals, lane_mask(f, depth - whole, lanes))
    return _joined(f, type, totals + [literal(type, 0.0)] * (lanes - count))


def _joined(f: Function, type: str, totals: list[str]) -> str:
    """One lane for each total: neighbours are added pair by pair, log2(lanes) times over."""
    n = len(totals)
    while len(totals) > 1:
        totals = [
            f.binary(
                "fadd",
                type,
                f.shuffle(type, a, b, range(0, 2 * n, 2)),
                f.shuffle(type, a, b, range(1, 2 * n, 2)),
            )
            for a, b in zip(totals[::2], totals[1::2])
        ]
    return totals[0]


class PanelCopy:
    """One function: a copy of a panel in which each step's vectors are neighbours, filled with 0.

    `outer` and `depth` are the distances of neighbouring columns and steps, in elements. Where
    steps are neighbours the copy is written in whole vectors of steps. `vectors` is the panel's
    width where that is more than the columns fill. With `told` the function is given the number of
    columns; zeros, or the last of these, stand in for those that are missing.
    """

    def __init__(
        self,
        module: Module,
        name: str,
        lanes: int,
        columns: int,
        outer: int,
        depth: int,
        vectors: int = 0,
        told: bool = False,
    ) -> None:
        self.told = told
        self.columns, self.outer, self.depth = columns, outer, depth
        self.lanes, self.type = lanes, vector("float", lanes)
        self.vectors = vectors or -(-columns // lanes)
        self.pitch = self.vectors * lanes * 4
        parameters = {"right": "ptr", "panel": "ptr", "steps": "i64"}
        parameters |= {"columns": "i64"} if told else {}
        self.f = module.function(name, parameters, linkage="internal", attributes="noinline")

    def emit(self) -> None:
        """The whole function."""
        if self.outer == 1:
            self.f.loop(0, "%steps", 1, self.row)
        elif self.depth == 1:
            self.transposed()
        else:
            self.f.loop(0, "%steps", 1, self.gathered)
        self.f.end()

    def row(self, k: str, _: list[str]) -> None:
        """Columns that are neighbours already."""
        f = self.f
        source, target = self.addresses(k)
        for v in range(self.vectors):
            at, count = 4 * v * self.lanes, self.columns - v * self.lanes
            if self.told:
                mask = lane_mask(f, f.sub("%columns", v * self.lanes), self.lanes)
                value = f.masked_load(self.type, mask, source, at)
            elif count >= self.lanes:
                value = f.load(self.type, source, at)
            elif count <= 0:
                value = literal(self.type, 0.0)
            else:
                value = f.masked_load(self.type, lane_mask(f, count, self.lanes), source, at)
            f.store(self.type, value, target, at, self.lanes * 4)

    def addresses(self, k: Index) -> tuple[str, str]:
        f = self.f
        source = f.address("%right", f.mul(k, 4 * self.depth))
        return source, f.address("%panel", f.mul(k, self.pitch))

    def gathered(self, k: str, _: list[str]) -> None:
        f = self.f
        source, target = self.addresses(k)

        def one(c: str, _: list[str]) -> None:
            value = f.load("float", f.address(source, self._column(c)))
            f.store("float", value, f.address(target, f.mul(c, 4)))

        f.loop(0, self.columns, 1, one)
        for c in range(self.columns, self.vectors * self.lanes):
            f.store("float", literal("float", 0.0), target, 4 * c)

    def _column(self, c: Index) -> Index:
        """Bytes from the first column to another one."""
        f = self.f
        return f.mul(f.min(c, f.sub("%columns", 1)) if self.told else c, 4 * self.outer)

    def transposed(self) -> None:
        """Columns whose steps are neighbours, block by block through registers."""
        f, lanes = self.f, self.lanes
        whole = f.mul(f.div("%steps", lanes), lanes)
        f.loop(0, whole, lanes, lambda k, _: self.blocks(k, ""))
        rest = f.sub("%steps", whole)
        some = f.op(f"icmp ne i64 {rest}, 0")
        f.when(some, lambda: self.blocks(whole, lane_mask(f, rest, lanes)))

    def blocks(self, k: Index, mask: str) -> None:
        f, lanes = self.f, self.lanes
        source, target = self.addresses(k)
        for v in range(self.vectors):
            rows = []
            for c in range(v * lanes, (v + 1) * lanes):
                at = self._column(c)
                if c >= self.columns:
                    rows.append(literal(self.type, 0.0))
                elif mask:
                    rows.append(f.masked_load(self.type, mask, source, at))
                else:
                    rows.append(f.load(self.type, source, at))
            for i, column in enumerate(transpose(f, self.type, rows)):
                f.store(self.type, column, target, i * self.pitch + 4 * v * lanes, lanes * 4)
