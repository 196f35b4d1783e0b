"""Recurrent layers: one launch walks all steps, a block for each row, or for a few of them.

Where a layer is small its weight and its state stay in registers. Otherwise each step reads the
weight from the second-level cache, and the state goes through memory that the block has to itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from whet.ir.graph import Value, operator
from whet.ir.types import NUMPY_DTYPES
from whet.ops.recurrent import GATES, Recurrent
from whet.plan import recurrent as layers
from whet.plan.kernel import Expression, Load, Template
from whet.plan.target import Plain
from whet.targets.cuda import arithmetic
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.expressions import Emitter, Place, R
from whet.targets.cuda.expressions import Tile as Shape
from whet.targets.cuda.legalize import legalize
from whet.targets.cuda.source import HEADER, Launch, Source
from whet.targets.cuda.templates.contraction import integer
from whet.targets.cuda.text import Text

MOST_ROWS = 4
MOST_RESIDENT = 1 << 14  # elements of a weight, zeros included, that registers hold
FEWEST_UNITS = 16


@operator
class FusedRecurrent(Recurrent):
    """A recurrent layer that this target runs whole; states and sums are float32."""


@dataclass(frozen=True)
class Tile:
    """Rows that go through the steps together, and the units and depth of a piece of the weight."""

    rows: int
    units: int
    depth: int
    warps: int
    resident: bool


class RecurrentTemplate(Plain):
    """Recurrent of any kind, direction, activations and lengths."""

    def legalize(self, value: Value, architecture: Architecture) -> Any:
        op: Any = value.op
        if not layers.runs_whole(value):
            return None
        return FusedRecurrent(**op.attributes)(*value.inputs)

    def tiles(self, kernel: Template, architecture: Architecture) -> list[Tile]:
        return [tile_of(kernel, architecture)]

    def generate(self, kernel: Template, architecture: Architecture, tile: Tile) -> Source:
        code = Resident if tile.resident else Streamed
        return code(kernel, architecture, tile).generate()


def tile_of(kernel: Template, architecture: Architecture) -> Tile:
    """How a layer is cut up."""
    gates, weight = kernel.inputs[:2]
    assert gates is not None and weight is not None
    batch, (units, columns) = integer(gates.shape[1]), map(integer, weight.shape)
    rows = 1
    while rows < MOST_ROWS and -(-batch // rows) > architecture.multiprocessors:
        rows *= 2
    wide = max(FEWEST_UNITS, 1 << (units - 1).bit_length())
    if wide * wide * (columns // units) <= MOST_RESIDENT:
        return Tile(rows, wide, wide, max(1, wide * wide // 512), True)
    return Tile(rows, min(wide, 128), 32, 16, False)


class Code:
    """The function being written: sizes, memory, and the arithmetic of a step."""

    def __init__(self, kernel: Template, architecture: Architecture, tile: Tile) -> None:
        assert isinstance(kernel.op, FusedRecurrent)
        self.kernel, self.op, self.architecture, self.tile = kernel, kernel.op, architecture, tile
        gates, weight, *_ = kernel.inputs
        assert gates is not None and weight is not None
        self.steps, self.batch, self.columns = (integer(s) for s in gates.shape)
        self.units = integer(weight.shape[0])
        self.text = Text()
        self.names = [f"b{n}" for n in range(len(kernel.buffers))]
        self.inputs = (*kernel.inputs, *[None] * (7 - len(kernel.inputs)))
        self.results = self.names[int(kernel.output.buffer) :]
        self.rows = range(tile.rows)
        self.e = Emitter(self.text, self.names, Shape("1", str(tile.units)))
        self.inside = "" if self.units % tile.units == 0 else f"(u < {self.units})"

    def generate(self, name: str = "kernel") -> Source:
        """The whole kernel."""
        text, gates = self.text, range(GATES[self.op.kind])
        blocks = -(-self.batch // self.tile.rows)
        if self.architecture.has_dependent_launch:
            size = NUMPY_DTYPES[self._dtype(1)].itemsize * self.units * self.columns
            text.prefetch(self._name(1), size, "tl.program_id(0)", blocks)
        text.wait(self.architecture)
        for r in self.rows:
            # Rows beyond the last are the last once more: they write what it writes.
            row = f"tl.program_id(0) * {self.tile.rows} + {r}"
            text.line(f"row{r} = tl.minimum({row}, {self.batch - 1}).to(tl.int64)")
            if self.inputs[6] is not None:
                text.line(f"length{r} = tl.load({self._name(6)} + row{r})")
        self.begin(gates)
        with text.block(f"for step in range({self.steps}):"):
            text.line("t = " + (f"{self.steps - 1} - step" if self.op.backward else "step"))
            self.step()
        self.end()
        scratch = self.scratch()
        body = text.function(name, ("error", *self.names, *["scratch"] * bool(scratch)))
        launch = Launch(
            name,
            (blocks, 1, 1),
            ("error", *range(len(self.names)), *["scratch"] * bool(scratch)),
            (
                "*i32",
                *(arithmetic.POINTER[d] for d in self.kernel.buffers),
                *["*fp32"] * bool(scratch),
            ),
            self.tile.warps,
            2,
            scratch=4 * blocks * scratch,
        )
        return Source(HEADER + arithmetic.helpers(body) + body, (launch,))

    # What differs between a state in registers and one in memory.

    def scratch(self) -> int:
        """Floats of memory that a block needs."""
        return 0

    def begin(self, gates: Iterable[int]) -> None:
        """What stands before the steps."""

    def step(self) -> None:
        """One step, in which `t` is its place."""

    def end(self) -> None:
        """What stands behind the steps."""

    def sums(self, gates: Iterable[int], state: str) -> dict[tuple[int, int], str]:
        """By gate and row: the product of a state and the weight."""
        raise NotImplementedError

    def own(self, gate: int, r: int) -> str:
        """A gate's input product."""
        return self.product("t", gate, r)

    def product(self, t: str, gate: int, r: int) -> str:
        """A gate's input product of a step."""
        return self.input(0, f"({t} * {self.batch} + row{r}) * {self.columns}", gate)

    def state(self, name: str, r: int) -> str:
        """A row of a state: h, c, or a part of a step."""
        raise NotImplementedError

    def keep(self, name: str, r: int, value: str) -> None:
        """Takes a row of a state over."""

    # Memory.

    def _name(self, position: int) -> str:
        view = self.inputs[position]
        assert view is not None
        return self.names[view.buffer]

    def _dtype(self, position: int) -> str:
        view = self.inputs[position]
        assert view is not None
        return view.dtype

    def where(self, *tests: str) -> str:
        """The end of a load or store of what there is."""
        mask = " & ".join(test for test in tests if test)
        return f", mask={mask}" if mask else ""

    def input(self, position: int, place: str, part: int = 0) -> str:
        """Units of an input from a place on, as float32."""
        pointer = f"{self._name(position)} + {place} + {part * self.units} + u"
        other = ", other=0" if self.inside else ""
        loaded = f"tl.load({pointer}{self.where(self.inside)}{other})"
        return self.text.assign(arithmetic.to_compute(loaded, self._dtype(position)))

    def output(self, result: int, place: str, value: str) -> None:
        """Units of a result."""
        stored = arithmetic.to_storage(value, self.kernel.buffers[-1])
        pointer = f"{self.results[result]} + {place} + u"
        self.text.line(f"tl.store({pointer}, {stored}{self.where(self.inside)})")

    # Arithmetic.

    def compute(self, expressions: Sequence[Expression], leaves: Sequence[str]) -> list[str]:
        """Expressions of numbers that have names."""
        with self.e.scope():
            for n, leaf in enumerate(leaves):
                self.e.values[-1][Load(n, 0, "float32")] = Place(leaf, R)
            return [self.e.emit(x).text for x in expressions]

    def plus(self, *terms: str) -> str:
        return self.text.assign(" + ".join(terms))

    def finish(self, r: int, h: str, c: str | None = None) -> None:
        """A row's new state and its output; one beyond its end keeps the state and gives 0."""
        shown, old = h, self.state("h", r)
        if self.inputs[6] is not None:
            alive = self.text.assign(f"t < length{r}")
            shown = self.text.assign(f"tl.where({alive}, {h}, 0.0)")
            h = self.text.assign(f"tl.where({alive}, {h}, {old})")
            c = c and self.text.assign(f"tl.where({alive}, {c}, {self.state('c', r)})")
        self.output(0, f"(t * {self.batch} + row{r}) * {self.units}", shown)
        self.keep("h", r, h)
        if c is not None:
            self.keep("c", r, c)

    def cells(self) -> None:
        """A step of some units, all of whose sums come from the state before it."""
        {"lstm": self._lstm, "gru": self._gru, "rnn": self._plain}[self.op.kind]()

    def _lstm(self) -> None:
        peephole = self.inputs[5] is not None
        expressions = layers.lstm(self.op, peephole, legalize)
        total = self.sums(range(4), "h")
        for r in self.rows:
            leaves = [self.plus(self.own(g, r), total[g, r]) for g in range(4)]
            leaves.append(self.state("c", r))
            leaves += [self.input(5, "0", k) for k in range(3 * peephole)]
            self.finish(r, *self.compute(expressions, leaves))

    def _gru(self) -> None:
        """With the reset gate behind the product."""
        expressions = layers.gru(self.op, legalize)
        total = self.sums(range(3), "h")
        for r in self.rows:
            z, reset = (self.plus(self.own(g, r), total[g, r]) for g in range(2))
            product = total[2, r]
            if self.inputs[4] is not None:
                product = self.plus(product, self.input(4, "0"))
            leaves = [z, reset, self.own(2, r), product, self.state("h", r)]
            self.finish(r, *self.compute(expressions, leaves))

    def gru_gates(self) -> None:
        """The update gate, and the state that the reset gate lets through."""
        expressions = layers.gru_gates(self.op, legalize)
        total = self.sums(range(2), "h")
        for r in self.rows:
            leaves = [self.plus(self.own(g, r), total[g, r]) for g in range(2)]
            z, passed = self.compute(expressions, [*leaves, self.state("h", r)])
            self.keep("z", r, z)
            self.keep("passed", r, passed)

    def gru_candidate(self) -> None:
        expressions = layers.gru_candidate(self.op, legalize)
        total = self.sums((2,), "passed")
        for r in self.rows:
            candidate = self.plus(self.own(2, r), total[2, r])
            leaves = [self.state("z", r), candidate, self.state("h", r)]
            self.finish(r, *self.compute(expressions, leaves))

    def _plain(self) -> None:
        expressions = layers.plain(self.op, legalize)
        total = self.sums((0,), "h")
        for r in self.rows:
            x = self.plus(self.own(0, r), total[0, r])
            self.finish(r, *self.compute(expressions, [x]))

    @property
    def in_two_phases(self) -> bool:
        """Whether a product needs what the reset gate lets through of all units."""
        return self.op.kind == "gru" and not self.op.reset_after

    @property
    def states(self) -> tuple[tuple[str, int], ...]:
        """What goes from step to step, with the position of where it begins."""
        return (("h", 2), ("c", 3)) if self.op.kind == "lstm" else (("h", 2),)


class Resident(Code):
    """Weight and state in registers; the next step's input products are on their way."""

    def begin(self, gates: Iterable[int]) -> None:
        text, t = self.text, self.tile
        text.line(f"u = tl.arange(0, {t.units})[None, :]")
        text.line(f"k = tl.arange(0, {t.depth})[:, None]")
        tests = [self.inside, f"(k < {self.units})"] if self.inside else []
        other = ", other=0" if self.inside else ""
        self.gates = tuple(gates)
        for g in self.gates:
            pointer = f"{self._name(1)} + k * {self.columns} + {g * self.units} + u"
            loaded = f"tl.load({pointer}{self.where(*tests)}{other})"
            text.line(f"w{g} = {arithmetic.to_compute(loaded, self._dtype(1))}")
        for name, position in self.states:
            for r in self.rows:
                text.line(f"{name}{r} = {self.input(position, f'row{r} * {self.units}')}")
        self._ask("own", str(self.steps - 1 if self.op.backward else 0))

    def _ask(self, name: str, t: str) -> None:
        for g in self.gates:
            for r in self.rows:
                self.text.line(f"{name}{g}_{r} = {self.product(t, g, r)}")

    def step(self) -> None:
        text, last = self.text, self.steps - 1
        ahead = "tl.maximum(t - 1, 0)" if self.op.backward else f"tl.minimum(t + 1, {last})"
        text.line(f"ahead = {ahead}")
        self._ask("next", "ahead")
        if self.in_two_phases:
            self.gru_gates()
            self.gru_candidate()
        else:
            self.cells()
        for g in self.gates:
            for r in self.rows:
                text.line(f"own{g}_{r} = next{g}_{r}")

    def end(self) -> None:
        for result, (name, _) in enumerate(self.states, 1):
            for r in self.rows:
                self.output(result, f"row{r} * {self.units}", f"{name}{r}")

    def own(self, gate: int, r: int) -> str:
        return f"own{gate}_{r}"

    def sums(self, gates: Iterable[int], state: str) -> dict[tuple[int, int], str]:
        found: dict[tuple[int, int], str] = {}
        for r in self.rows:
            wide = self.text.assign(f"tl.trans({self.state(state, r)})")
            for g in gates:
                found[g, r] = self.text.assign(f"tl.sum({wide} * w{g}, 0)[None, :]")
        return found

    def state(self, name: str, r: int) -> str:
        return f"{name}{r}"

    def keep(self, name: str, r: int, value: str) -> None:
        # What grows in lanes beyond the last unit must not reach the others.
        value = f"tl.where({self.inside}, {value}, 0.0)" if self.inside else value
        self.text.line(f"{name}{r} = {value}")


class Streamed(Code):
    """The weight piece by piece in each step, the state in memory."""

    ROOM = ("even", "odd", "c", "z", "passed")
    """States of all rows, one behind the other; h is in one of the first two, by step."""

    def scratch(self) -> int:
        return len(self.ROOM) * self.tile.rows * self.units

    def begin(self, gates: Iterable[int]) -> None:
        text, all_rows = self.text, self.tile.rows * self.units
        text.line(f"room = scratch + tl.program_id(0).to(tl.int64) * {self.scratch()}")
        for number, name in enumerate(self.ROOM):
            text.line(f"{name} = room + {number * all_rows}")
        text.line("h, new = even, odd")
        self._each(lambda: self._copy_in())
        text.line("tl.debug_barrier()")

    def _each(self, body: Callable[[], None]) -> None:
        """A loop over all pieces of units."""
        text, t = self.text, self.tile
        lanes = f"tl.arange(0, {t.units})[None, :]"
        if t.units >= self.units:
            text.line(f"u = {lanes}")
            body()
            return
        with text.block(f"for first in range(0, {self.units}, {t.units}):"):
            text.line(f"u = first + {lanes}")
            body()

    def _copy_in(self) -> None:
        for name, position in self.states:
            for r in self.rows:
                loaded = self.input(position, f"row{r} * {self.units}")
                self._put(name, r, loaded)

    def step(self) -> None:
        text, all_rows = self.text, self.tile.rows * self.units
        text.line(f"h = room + step % 2 * {all_rows}")
        text.line(f"new = room + (1 - step % 2) * {all_rows}")
        phases = (self.gru_gates, self.gru_candidate) if self.in_two_phases else (self.cells,)
        for phase in phases:
            self._each(phase)
            text.line("tl.debug_barrier()")

    def end(self) -> None:
        self.text.line(f"h = room + {self.steps % 2 * self.tile.rows * self.units}")
        self._each(self._copy_out)

    def _copy_out(self) -> None:
        for result, (name, _) in enumerate(self.states, 1):
            for r in self.rows:
                place = f"row{r} * {self.units}"
                self.output(result, place, self.text.fresh_line(self._got(name, r)))

    def sums(self, gates: Iterable[int], state: str) -> dict[tuple[int, int], str]:
        text, t = self.text, self.tile
        keys = [(g, r) for g in gates for r in self.rows]
        names = {key: text.fresh("sum") for key in keys}
        for name in names.values():
            text.line(f"{name} = tl.zeros(({t.depth}, {t.units}), tl.float32)")
        deep = f"(k < {self.units})" if self.units % t.depth else ""
        other = ", other=0" if deep or self.inside else ""
        with text.block(f"for begin in range(0, {self.units}, {t.depth}):"):
            text.line(f"k = begin + tl.arange(0, {t.depth})[:, None]")
            for r in self.rows:
                where = self.where(deep) + ", other=0" * bool(deep)
                text.line(f"x{r} = tl.load({state} + {r * self.units} + k{where})")
            for g in gates:
                pointer = f"{self._name(1)} + k * {self.columns} + {g * self.units} + u"
                loaded = f"tl.load({pointer}{self.where(deep, self.inside)}{other})"
                text.line(f"w = {arithmetic.to_compute(loaded, self._dtype(1))}")
                for r in self.rows:
                    text.line(f"{names[g, r]} += x{r} * w")
        return {key: text.fresh_line(f"tl.sum({name}, 0)[None, :]") for key, name in names.items()}

    def state(self, name: str, r: int) -> str:
        return self.text.fresh_line(self._got(name, r))

    def _got(self, name: str, r: int) -> str:
        other = ", other=0" if self.inside else ""
        return f"tl.load({name} + {r * self.units} + u{self.where(self.inside)}{other})"

    def keep(self, name: str, r: int, value: str) -> None:
        self._put("new" if name == "h" else name, r, value)

    def _put(self, name: str, r: int, value: str) -> None:
        pointer = f"{name} + {r * self.units} + u"
        self.text.line(f"tl.store({pointer}, {value}{self.where(self.inside)})")
