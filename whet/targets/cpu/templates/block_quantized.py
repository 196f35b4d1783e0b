"""Products with weights of a few bits: each block of a panel becomes floats next to the core.

The codes stay in memory as they are, a lane for each column: 4 bytes hold neighbouring steps of the
sum. A block of a panel is dequantised into the first-level cache and multiplied from there, so that
one row moves a fraction of the weight's bytes and many rows share the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from whet.ir.graph import Op, Value, constant, operator
from whet.ir.sizes import Size, product
from whet.ir.types import TensorType
from whet.ops.block_quantized import BlockQuantizedMatMul
from whet.ops.movement import Pad, reshape, transpose
from whet.plan.kernel import Template, View
from whet.targets.cpu.architecture import Architecture
from whet.targets.cpu.llvm import Function, Index, Module, array_literal, literal, vector
from whet.targets.cpu.templates.matmul import FLOATS, Problem, Schedule, cast, integer, problem_of
from whet.targets.cpu.templates.product import ProductCode, Run, Unit
from whet.targets.cpu.templates.results import buffer, named_sizes
from whet.targets.cpu.templates.tiling import split_even

TOLD_ROWS = 6
"""Rows of a tile where a run tells how many there are in all."""

PANEL = 24 << 10
"""Bytes of floats that a dequantised block of a panel takes."""


@operator
class BlockQuantizedProduct(Op):
    """a[..., K] times a weight of which codes[vectors, blocks, words, lanes, 4] are the bytes.

    scales[vectors, blocks, lanes], and zeros where the middle does not stand for 0, are floats.
    """

    inner: int
    columns: int
    bits: int
    block: int

    def infer(
        self, a: TensorType, codes: TensorType, scales: TensorType, zeros: TensorType | None = None
    ) -> TensorType:
        return a.with_shape(*a.shape[:-1], self.columns)

    def operations(self, a: TensorType, *weights: TensorType | None) -> Size:
        return 2 * product(a.shape) * self.columns


class BlockQuantizedTemplate:
    """BlockQuantizedMatMul with weights that are known."""

    has_epilogue = True
    has_strided_output = True

    def takes(self, op: Op, position: int, view: View) -> bool:
        # A run may tell how many rows there are.
        sizes = *view.strides, *view.shape[len(view.shape) == 2 :], view.offset
        return position == 0 and all(isinstance(s, int) for s in sizes)

    def legalize(self, value: Value, architecture: Architecture) -> Value | None:
        op = value.op
        if type(op) is not BlockQuantizedMatMul:
            return None
        a, *weights = value.inputs
        assert a is not None
        known = all(w is None or (w.is_static and w.tensor.is_static) for w in weights)
        if not known or a.is_static or a.dtype not in FLOATS:
            return None
        columns, lanes = integer(value.shape[-1]), architecture.vector_bytes // 4
        if op.bits not in (2, 4, 8) or op.block * op.bits % 32 or columns < lanes:
            return None
        if 0 in a.shape or a.rank < 2:
            return None
        given = [w and lanes_last(w, lanes) for w in weights]
        run = BlockQuantizedProduct(op.inner, columns, op.bits, op.block)
        codes, *numbers = given
        floats = [n and cast(n, "float32") for n in numbers]
        rows = a if a.tensor.is_static else reshape(a, product(a.shape[:-1]), op.inner)
        y = cast(run(cast(rows, "float32"), codes, *floats), value.dtype)
        return y if rows is a else reshape(y, *value.shape)

    def generate(self, kernel: Template, architecture: Architecture, name: str) -> Module:
        op, (a, codes, *numbers) = kernel.op, kernel.inputs
        assert isinstance(op, BlockQuantizedProduct) and a is not None and codes is not None
        weight = View(codes.buffer, "float32", (op.inner, op.columns), (0, 1))
        problem = problem_of(replace(kernel, inputs=(a, weight)), architecture)
        schedule = schedule_of(problem, op, architecture)
        buffers = [n.buffer for n in (codes, *numbers) if n is not None]
        code = BlockQuantizedCode(kernel, problem, schedule, architecture, name)
        code.op, code.buffers = op, buffers
        return code.generate()


def lanes_last(w: Value, lanes: int) -> Value:
    """w[N, blocks, ...] as [vectors, blocks, ..., lanes]; codes in words of four bytes."""
    columns, blocks, *rest = (integer(size) for size in w.shape)
    rest = [rest[0] // 4, 4] if rest else []
    vectors = -(-columns // lanes)
    more = vectors * lanes - columns
    if more:
        zeros = (0,) * w.rank
        w = Pad(zeros, (more, *zeros[1:]))(w, constant(0, w.dtype))
    wide = reshape(w, vectors, lanes, blocks, *rest)
    return transpose(wide, 0, 2, 3, 1, 4) if rest else transpose(wide, 0, 2, 1)


def schedule_of(p: Problem, op: BlockQuantizedProduct, architecture: Architecture) -> Schedule:
    """Tiles that fill the registers, and as much of the sum as the cache holds in floats."""
    lanes, many = architecture.vector_bytes // 4, architecture.vector_registers >= 32
    rows, vectors = p.rows.size, -(-integer(p.columns.size) // lanes)
    most = 12 if many and isinstance(rows, int) else TOLD_ROWS
    tiles = tuple(split_even(rows, most)) if isinstance(rows, int) else (TOLD_ROWS,)
    wide = 4 if tiles[0] <= 6 and many else 2
    panels = tuple(split_even(vectors, wide))
    blocks = max(1, PANEL // (op.block * panels[0] * lanes * 4))
    depth = min(blocks, -(-op.inner // op.block)) * op.block
    return Schedule(tiles, panels, depth, True, False, 2 if tiles[0] > 6 else 4)


class BlockQuantizedCode(ProductCode):
    """Writes the kernel: a product whose panels are dequantised where others are copied."""

    op: BlockQuantizedProduct
    buffers: Sequence[int]

    def _tiles(self, f: Function) -> tuple[Index, list[Run]]:
        rows = self.p.rows.size
        if isinstance(rows, int):
            return super()._tiles(f)
        # Tiles of full height, then the rows that are left one by one.
        told, height = named_sizes(self.kernel).index(f, rows), self.s.rows[0]
        full = f.div(told, height)
        tiles = f.add(full, f.rem(told, height))
        return tiles, [Run(0, full, 0, height), Run(full, tiles, f.mul(full, height), 1)]

    def _packed(
        self, f: Function, unit: Unit, right: str, columns: int, steps: Index, at: tuple[Index, ...]
    ) -> str:
        op, (column, k) = self.op, at
        name = f"{self.name}_floats{columns}"
        if name not in self.emitted:
            self.emitted.add(name)
            Dequantise(self, name, -(-columns // self.lanes)).emit()
        first, block = f.div(column, self.lanes), f.div(k, op.block)
        sizes = [self.block_bytes, *(4 * self.lanes for _ in self.buffers[1:])]
        given = []
        for number, size in zip(self.buffers, sizes):
            start = f.mul(f.add(f.mul(first, self.blocks), block), size)
            given.append(f"ptr {f.address(buffer(f, number), start)}")
        count = f.div(f.add(steps, op.block - 1), op.block)
        f.do(f"call void @{name}({', '.join(given)}, ptr {unit.panel}, i64 {count})")
        return unit.panel

    @property
    def blocks(self) -> int:
        return -(-self.op.inner // self.op.block)

    @property
    def block_bytes(self) -> int:
        """Bytes of the codes of a block, for a vector of columns."""
        return self.op.block * self.op.bits // 8 * self.lanes


class Dequantise:
    """One function: blocks of some vectors of columns as floats, a row for each step of the sum."""

    def __init__(self, code: BlockQuantizedCode, name: str, vectors: int) -> None:
        self.code, self.op, self.lanes, self.type = code, code.op, code.lanes, code.type
        self.vectors = vectors
        self.ints = vector("i32", self.lanes)
        self.has_zeros = len(code.buffers) > 2
        names = ("codes", "scales", *(("zeros",) if self.has_zeros else ()), "panel")
        parameters = dict.fromkeys(names, "ptr") | {"count": "i64"}
        self.f = code.module.function(name, parameters, linkage="internal", attributes="noinline")

    def emit(self) -> None:
        """The whole function."""
        self.f.loop(0, "%count", 1, lambda block, _: self._block(block), guard=False)
        self.f.end()

    def _block(self, block: str) -> None:
        f, op, size = self.f, self.op, 4 * self.lanes
        pitch = self.vectors * size
        words = op.block * op.bits // 32
        per_word = 32 // op.bits
        for v in range(self.vectors):
            place = f.add(block, v * self.code.blocks)
            scale = f.load(self.type, f.address("%scales", f.mul(place, size)), 0, size)
            zero = ""
            if self.has_zeros:
                zero = f.load(self.type, f.address("%zeros", f.mul(place, size)), 0, size)
            codes = f.address("%codes", f.mul(place, self.code.block_bytes))
            target = f.address("%panel", f.add(f.mul(block, op.block * pitch), v * size))

            def word(
                w: str,
                _: list[str],
                codes: str = codes,
                target: str = target,
                scale: str = scale,
                zero: str = zero,
            ) -> None:
                bits = f.load(self.ints, f.address(codes, f.mul(w, size)), 0, size)
                row = f.address(target, f.mul(w, per_word * pitch))
                for j in range(per_word):
                    value = self._float(bits, j, zero)
                    value = f.binary("fmul", self.type, value, scale)
                    f.store(self.type, value, row, j * pitch, size)

            f.loop(0, words, 1, word)

    def _float(self, words: str, j: int, zero: str) -> str:
        """The code at place j of each word, less the zero point."""
        f, op = self.f, self.op
        if j:
            words = f.binary("lshr", self.ints, words, literal(self.ints, j * op.bits))
        middle = 0 if zero else 2 ** (op.bits - 1)
        if op.bits == 4 and self.lanes == 16:
            # The instruction looks at four bits of each lane only.
            table = array_literal(self.type, [q - middle for q in range(16)])
            given = [(self.type, table), (self.ints, words)]
            value = f.call(self.type, "llvm.x86.avx512.permvar.sf.512", given)
        else:
            codes = f.binary("and", self.ints, words, literal(self.ints, 2**op.bits - 1))
            if middle:
                codes = f.binary("sub", self.ints, codes, literal(self.ints, middle))
            value = f.convert("sitofp", codes, self.ints, self.type)
        return f.binary("fsub", self.type, value, zero) if zero else value
