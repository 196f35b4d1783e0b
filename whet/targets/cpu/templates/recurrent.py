"""Recurrent layers: one kernel walks all steps, with the state of a few rows next to the core.

A tile of rows meets the recurrent weight once in each step; the sums of all gates of a vector of
units stay in registers and go through the cell's arithmetic there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from whet.ir.graph import Value, constant, operator
from whet.ops.elementwise import Cast
from whet.ops.movement import Pad, reshape, transpose
from whet.ops.recurrent import GATES, Recurrent
from whet.plan import recurrent as layers
from whet.plan.kernel import Expression, Load, Template
from whet.plan.target import Plain
from whet.targets.cpu.architecture import Architecture
from whet.targets.cpu.expressions import Emitter
from whet.targets.cpu.legalize import legalize
from whet.targets.cpu.llvm import Function, Index, Module, vector
from whet.targets.cpu.reductions import lane_mask
from whet.targets.cpu.templates.matmul import integer
from whet.targets.cpu.templates.results import named_sizes

MOST_UNITS = 4096
"""Units whose state a thread keeps on its stack."""
UNROLL = 4
TOLD_ROWS = 4
"""The batch that tiles are cut for where a run tells it."""


@operator
class FusedRecurrent(Recurrent):
    """A recurrent layer in float32 that this target runs whole.

    Its weight is [blocks, H, G, width]: the columns of `width` neighbouring units for all gates
    follow each other, and zeros fill the last block.
    """

    def infer(self, *types: Any) -> Any:
        gates, weight, hidden, *rest = types
        return super().infer(
            gates, weight.with_shape(hidden.shape[1], gates.shape[2]), hidden, *rest
        )

    def reference(self, *arrays: Any) -> Any:
        gates, packed, hidden, *rest = arrays
        units = hidden.shape[1]
        blocks, _, count, width = packed.shape
        weight = packed.transpose(1, 2, 0, 3).reshape(units, count, blocks * width)[..., :units]
        return super().reference(gates, weight.reshape(units, -1), hidden, *rest)


def pack(weight: Value, gates: int, width: int) -> Value:
    """A recurrent weight[H, G*H] as FusedRecurrent wants it."""
    units, _ = _integers(weight)
    blocks = -(-units // width)
    wide = reshape(weight, units, gates, units)
    if blocks * width > units:
        room = Pad((0, 0, 0), (0, 0, blocks * width - units))
        wide = room(wide, constant(0.0, weight.dtype))
    return transpose(reshape(wide, units, gates, blocks, width), 2, 0, 1, 3)


class RecurrentTemplate(Plain):
    """Recurrent of any kind, direction, activations and lengths."""

    def legalize(self, value: Value, architecture: Architecture) -> Any:
        op: Any = value.op
        if not layers.runs_whole(value, told=True):
            return None
        gates, weight = value.inputs[:2]
        assert gates is not None and weight is not None
        units, _ = _integers(weight)
        if units > MOST_UNITS:
            return None
        run = FusedRecurrent(**op.attributes)
        given = (*value.inputs, *(None,) * (7 - len(value.inputs)))
        inputs = [i and _cast(i, "float32") for i in given[:6]]
        count, batch = GATES[op.kind], gates.shape[1]
        # Where a run tells the rows, one alone is what takes the longest for each.
        rows = tile_rows(batch, architecture) if isinstance(batch, int) else 1
        width = block_vectors(count, rows, units, architecture) * architecture.vector_bytes // 4
        inputs[1] = pack(_cast(weight, "float32"), count, width)
        results = run(*inputs, given[6] and _cast(given[6], "int64"))
        return tuple(_cast(r, value.dtype) for r in results)

    def generate(self, kernel: Template, architecture: Architecture, name: str) -> Module:
        module = Module(architecture.vector_bytes * 8)
        f = module.function(name, {"args": "ptr noalias", "thread": "i64", "threads": "i64"})
        RecurrentCode(f, kernel, architecture).emit()
        f.end()
        return module


def tile_rows(batch: int, architecture: Architecture) -> int:
    """Rows that go through the steps together."""
    few = batch < 8 or architecture.vector_registers < 32
    return 1 if batch < 4 else 2 if few else 4


def block_vectors(gates: int, rows: int, units: int, architecture: Architecture) -> int:
    """Vectors of units whose sums, for all gates and rows, fit into registers."""
    most = max(1, units * 4 // architecture.vector_bytes)
    return max(1, min(4, room(architecture) // (gates * rows), most))


def room(architecture: Architecture) -> int:
    """Registers for sums."""
    return 16 if architecture.vector_registers >= 32 else 8


def _cast(x: Value, dtype: str) -> Value:
    return x if x.dtype == dtype else Cast(dtype)(x)


def _integers(value: Value) -> tuple[int, ...]:
    return tuple(integer(size) for size in value.shape)


@dataclass
class Block:
    """Neighbouring units whose sums are in registers at once."""

    first: Index
    vectors: int
    packed: Index
    """The first unit of the block of the packed weight that holds them."""
    mask: str | None = None


class RecurrentCode:
    """The code of one layer: sizes, addresses, and the loops over tiles, steps and units."""

    def __init__(self, f: Function, kernel: Template, architecture: Architecture) -> None:
        assert isinstance(kernel.op, FusedRecurrent)
        self.f, self.op = f, kernel.op
        gates, weight, *_ = kernel.inputs
        assert gates is not None and weight is not None
        named = named_sizes(kernel)
        self.steps, self.batch = (named.index(f, size) for size in gates.shape[:2])
        self.columns = integer(gates.shape[2])
        self.units, self.width = (integer(weight.shape[axis]) for axis in (1, 3))
        self.lanes = architecture.vector_bytes // 4
        self.type = vector("float", self.lanes)
        known = isinstance(self.batch, int)
        self.rows = tile_rows(self.batch if known else TOLD_ROWS, architecture)  # type: ignore[arg-type]
        self.room = room(architecture)
        self.padded = -(-self.units // self.lanes) * self.lanes
        pointers = [f.load("ptr", "%args", 8 * (n + 1)) for n in range(len(kernel.buffers))]
        views = [*kernel.inputs, *[None] * (7 - len(kernel.inputs))]
        self.inputs = [None if v is None else pointers[v.buffer] for v in views]
        first = kernel.output.buffer
        assert isinstance(first, int)
        self.outputs = pointers[first:]
        self.e = Emitter(f, [], self.lanes)
        self.e.vector, self.e.lanes = "lane", self.lanes

    # Loops.

    def emit(self) -> None:
        f, rows = self.f, self.rows
        self.reserve(rows)
        tiles = f.div(self.batch, rows)
        done = f.mul(tiles, rows)
        self.share(0, tiles, rows)
        self.share(done, f.sub(self.batch, done), 1)

    def reserve(self, rows: int) -> None:
        """Memory for the states of a tile, on the stack: two hidden ones, each written from the
        other, the cell, and a GRU's gates."""
        self.row_bytes = 4 * self.padded
        self.hidden = self.f.alloca(2 * rows * self.row_bytes)
        self.cell = self.f.alloca(rows * self.row_bytes)
        self.reset = self.f.alloca(rows * self.row_bytes)

    def share(self, first: Index, count: Index, rows: int) -> None:
        """This thread's part of some tiles of equal height."""
        if count == 0:
            return
        f = self.f
        low = f.op(f"udiv i64 {f.mul('%thread', count)}, %threads")
        high = f.op(f"udiv i64 {f.mul(f.add('%thread', 1), count)}, %threads")
        f.loop(low, high, 1, lambda i, _: self.tile(f.add(first, f.mul(i, rows)), rows))

    def tile(self, row: Index, rows: int) -> None:
        """All steps of some rows."""
        f = self.f
        half = rows * self.row_bytes
        for r in range(rows):
            at = f.mul(f.add(row, r), 4 * self.units)
            self.copy(self.inputs[2], at, self.hidden, r * self.row_bytes)
            if self.op.kind == "lstm":
                self.copy(self.inputs[3], at, self.cell, r * self.row_bytes)

        def step(s: str, carried: list[str]) -> list[str]:
            (before,) = carried
            t = f.sub(f.sub(self.steps, 1), s) if self.op.backward else s
            after = f.sub(half, before)
            self.step(t, row, rows, str(before), after)
            return [str(after)]

        (last,) = f.loop(0, self.steps, 1, step, [("i64", "0")])
        for r in range(rows):
            at = f.mul(f.add(row, r), 4 * self.units)
            self.copy(self.hidden, f.add(last, r * self.row_bytes), self.outputs[1], at)
            if self.op.kind == "lstm":
                self.copy(self.cell, r * self.row_bytes, self.outputs[2], at)

    def copy(self, source: str | None, at: Index, target: str, to: Index) -> None:
        """One row of a state."""
        assert source is not None
        f = self.f
        source, target = f.address(source, at), f.address(target, to)
        self.each(1, lambda b: self.store(b, self.load(b, source, 0), target, 0))

    def each(self, vectors: int, body: Callable[[Block], None]) -> None:
        """The loops over all units: whole blocks, whole vectors, and the lanes that are left."""
        f, wide = self.f, vectors * self.lanes
        whole = self.units // wide * wide
        full = self.units // self.lanes * self.lanes

        def packed(unit: Index) -> Index:
            return f.mul(f.div(unit, self.width), self.width) if self.width > wide else unit

        last = self.units // self.width * self.width
        if whole:
            f.loop(0, whole, wide, lambda u, _: body(Block(u, vectors, packed(u))))
        if full > whole:
            f.loop(whole, full, self.lanes, lambda u, _: body(Block(u, 1, last)))
        if self.units > full:
            body(Block(full, 1, last, lane_mask(f, self.units - full, self.lanes)))

    # Memory: `offset` counts bytes from the block's first unit.

    def load(self, b: Block, base: str, offset: Index, vector: int = 0) -> str:
        f = self.f
        at = f.address(base, f.add(f.mul(b.first, 4), f.add(offset, 4 * vector * self.lanes)))
        return f.load(self.type, at) if b.mask is None else f.masked_load(self.type, b.mask, at)

    def store(self, b: Block, value: str, base: str, offset: Index, vector: int = 0) -> None:
        f = self.f
        at = f.address(base, f.add(f.mul(b.first, 4), f.add(offset, 4 * vector * self.lanes)))
        if b.mask is None:
            f.store(self.type, value, at)
        else:
            f.masked_store(self.type, value, b.mask, at)

    # One step.

    def step(self, t: Index, row: Index, rows: int, before: str, after: Index) -> None:
        vectors = self.width // self.lanes
        while vectors * rows * GATES[self.op.kind] > self.room and vectors > 1:
            vectors //= 2
        old, new = (self.f.address(self.hidden, x) for x in (before, after))
        at = _At(t, row, rows, old, new)
        if self.op.kind == "gru" and not self.op.reset_after:
            self.each(vectors, lambda b: self.gru_gates(b, at))
            self.each(vectors, lambda b: self.gru_candidate(b, at))
            return
        block = {"lstm": self.lstm, "gru": self.gru, "rnn": self.plain}[self.op.kind]
        self.each(vectors, lambda b: block(b, at))

    def own(self, b: Block, at: _At, gate: int, r: int, v: int) -> str:
        """A gate's input product."""
        f = self.f
        line = f.add(f.mul(at.t, self.batch), f.add(at.row, r))
        offset = f.add(f.mul(line, 4 * self.columns), 4 * gate * self.units)
        assert self.inputs[0] is not None
        return self.load(b, self.inputs[0], offset, v)

    def sums(self, b: Block, at: _At, gates: Sequence[int], state: str) -> _Sums:
        """state @ weight for some gates: a vector of units for each gate, row and place."""
        f = self.f
        keys = [(g, r, v) for g in gates for r in range(at.rows) for v in range(b.vectors)]
        unroll = UNROLL if self.units % UNROLL == 0 else 1

        line = GATES[self.op.kind] * self.width * 4
        weight = f.address(self.inputs[1] or "", f.mul(b.packed, self.units * line // self.width))
        weight = f.address(weight, f.mul(f.sub(b.first, b.packed), 4))

        def turn(k: str, carried: list[str]) -> list[str]:
            total = dict(zip(keys, carried))
            x = f.address(state, f.mul(k, 4))
            w = f.address(weight, f.mul(k, line))
            for u in range(unroll):
                scalars = [f.load("float", x, 4 * u + r * self.row_bytes) for r in range(at.rows)]
                wide = [f.splat(self.type, scalar) for scalar in scalars]
                for g, v in itertools.product(gates, range(b.vectors)):
                    place = u * line + 4 * (g * self.width + v * self.lanes)
                    column = f.load(self.type, w, place)
                    for r in range(at.rows):
                        total[g, r, v] = f.fma(self.type, wide[r], column, total[g, r, v])
            return list(total.values())

        zero = [(self.type, "zeroinitializer")] * len(keys)
        return dict(zip(keys, f.loop(0, self.units, unroll, turn, zero)))

    def compute(self, expressions: Sequence[Expression], leaves: Sequence[str]) -> list[str]:
        with self.e.scope():
            for n, leaf in enumerate(leaves):
                self.e.scopes[-1].values[Load(n, 0, "float32")] = leaf, self.lanes
            return [self.e.widened(x) for x in expressions]

    def finish(self, b: Block, at: _At, r: int, v: int, h: str, c: str | None = None) -> None:
        """Stores a row's new state and its output; rows beyond their end keep the state and give
        0."""
        f, place = self.f, r * self.row_bytes
        shown = h
        if self.inputs[6] is not None:
            length = f.load("i64", self.inputs[6], f.mul(f.add(at.row, r), 8))
            alive = f.op(f"icmp slt i64 {at.t}, {length}")
            shown = f.select(alive, self.type, h, "zeroinitializer", by_lane=False)
            h = f.select(alive, self.type, h, self.load(b, at.old, place, v), by_lane=False)
            if c is not None:
                c = f.select(alive, self.type, c, self.load(b, self.cell, place, v), by_lane=False)
        self.store(b, h, at.new, place, v)
        if c is not None:
            self.store(b, c, self.cell, place, v)
        line = f.add(f.mul(at.t, self.batch), f.add(at.row, r))
        self.store(b, shown, self.outputs[0], f.mul(line, 4 * self.units), v)

    def lstm(self, b: Block, at: _At) -> None:
        f, peephole = self.f, self.inputs[5]
        expressions = layers.lstm(self.op, peephole is not None, legalize)
        total = self.sums(b, at, range(4), at.old)
        for r, v in at.places(b):
            leaves = [
                f.binary("fadd", self.type, self.own(b, at, g, r, v), total[g, r, v])
                for g in range(4)
            ]
            leaves.append(self.load(b, self.cell, r * self.row_bytes, v))
            if peephole is not None:
                leaves += [self.load(b, peephole, 4 * k * self.units, v) for k in range(3)]
            h, c = self.compute(expressions, leaves)
            self.finish(b, at, r, v, h, c)

    def gru(self, b: Block, at: _At) -> None:
        """With the reset gate behind the product."""
        f, bias = self.f, self.inputs[4]
        expressions = layers.gru(self.op, legalize)
        total = self.sums(b, at, range(3), at.old)
        for r, v in at.places(b):
            own = [self.own(b, at, g, r, v) for g in range(3)]
            z, reset = (f.binary("fadd", self.type, own[g], total[g, r, v]) for g in range(2))
            state = total[2, r, v]
            if bias is not None:
                state = f.binary("fadd", self.type, state, self.load(b, bias, 0, v))
            h = self.load(b, at.old, r * self.row_bytes, v)
            self.finish(b, at, r, v, *self.compute(expressions, [z, reset, own[2], state, h]))

    def gru_gates(self, b: Block, at: _At) -> None:
        """The update gate, and the state that the reset gate lets through."""
        f = self.f
        expressions = layers.gru_gates(self.op, legalize)
        total = self.sums(b, at, range(2), at.old)
        for r, v in at.places(b):
            leaves = [
                f.binary("fadd", self.type, self.own(b, at, g, r, v), total[g, r, v])
                for g in range(2)
            ]
            h = self.load(b, at.old, r * self.row_bytes, v)
            z, kept = self.compute(expressions, [*leaves, h])
            self.store(b, z, self.cell, r * self.row_bytes, v)
            self.store(b, kept, self.reset, r * self.row_bytes, v)

    def gru_candidate(self, b: Block, at: _At) -> None:
        f = self.f
        expressions = layers.gru_candidate(self.op, legalize)
        total = self.sums(b, at, (2,), self.reset)
        for r, v in at.places(b):
            place = r * self.row_bytes
            candidate = f.binary("fadd", self.type, self.own(b, at, 2, r, v), total[2, r, v])
            z, h = self.load(b, self.cell, place, v), self.load(b, at.old, place, v)
            self.finish(b, at, r, v, *self.compute(expressions, [z, candidate, h]))

    def plain(self, b: Block, at: _At) -> None:
        expressions = layers.plain(self.op, legalize)
        total = self.sums(b, at, (0,), at.old)
        for r, v in at.places(b):
            x = self.f.binary("fadd", self.type, self.own(b, at, 0, r, v), total[0, r, v])
            self.finish(b, at, r, v, *self.compute(expressions, [x]))


_Sums = dict[tuple[int, int, int], str]


@dataclass(frozen=True)
class _At:
    """Where a step stands: its number, its rows, and the states before and after it."""

    t: Index
    row: Index
    rows: int
    old: str
    new: str

    def places(self, b: Block) -> list[tuple[int, int]]:
        """Rows and vectors of a block."""
        return [(r, v) for r in range(self.rows) for v in range(b.vectors)]
