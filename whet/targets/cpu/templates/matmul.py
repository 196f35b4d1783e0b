"""Matrix products whose both sides are only known when they run: any strides, any leading axes.

A tile of rows x vectors of columns stays in registers while the sum runs; the right side is read
as it lies, or first copied into a panel in which each step's vectors are neighbours (Goto and
van de Geijn, Anatomy of High-Performance Matrix Multiplication, 2008). Where the right side is
transposed and there are few rows, lanes run along the sum instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from whet.ir.graph import Op, Value, operator
from whet.ir.sizes import Size, coefficient, substitute
from whet.ops.contract import MatMul
from whet.ops.elementwise import Cast
from whet.plan.kernel import Axis, Expression, Nest, Store, Template, View
from whet.plan.loops import merge
from whet.plan.lower import broadcast_index, loop_index
from whet.targets.cpu.architecture import Architecture
from whet.targets.cpu.llvm import Module
from whet.targets.cpu.templates.results import output_offset
from whet.targets.cpu.templates.tiling import split_even

PANEL_BYTES = 128 << 10  # of the right side, kept in the second-level cache
SUMS_BYTES = 48 << 10  # of unfinished results, where the sum is cut into blocks
PAGE = 4096  # rows this far apart share one set of the first-level cache


FLOATS = ("float32", "float16", "bfloat16")
"""What is computed in float32; 16-bit floats are rounded once, behind the sum."""


def cast(x: Value, dtype: str) -> Value:
    """x in another dtype, or as it is."""
    y: Value = x if x.dtype == dtype else Cast(dtype)(x)
    return y


def are_static(value: Value) -> bool:
    """Whether all sizes of an operator's inputs are numbers."""
    return all(i is None or i.tensor.is_static for i in value.inputs)


@operator
class Product(MatMul):
    """A float32 matrix product that this target runs whole."""


class ProductTemplate:
    """a[..., M, K] @ b[..., K, N] in float32."""

    has_epilogue = True
    has_strided_output = True

    def takes(self, op: Op, position: int, view: View) -> bool:
        known = all(isinstance(s, int) for s in (*view.strides, *view.shape, view.offset))
        return known and not (position == 0 and _is_scattered(view))

    def legalize(self, value: Value, architecture: Architecture) -> Value | None:
        if type(value.op) is not MatMul:
            return None
        dtypes = {i.dtype for i in value.inputs if i is not None}
        if not {value.dtype, *dtypes} <= set(FLOATS) or not are_static(value):
            return None
        product: Value = Product()(*(cast(i, "float32") for i in value.inputs if i is not None))
        return cast(product, value.dtype)

    def generate(self, kernel: Template, architecture: Architecture, name: str) -> Module:
        from whet.targets.cpu.templates.product import ProductCode

        problem = problem_of(kernel, architecture)
        schedule = schedule_of(problem, architecture)
        return ProductCode(kernel, problem, schedule, architecture, name).generate()


@dataclass(frozen=True)
class Side:
    """Where an operand lies: the distance of neighbours on each axis, in elements."""

    buffer: int
    start: int
    batch: tuple[int, ...]
    outer: int
    depth: int


@dataclass(frozen=True)
class Problem:
    """y[batch, row, column] = sum over d of left[batch, row, d] * right[batch, d, column]."""

    batch: tuple[Axis, ...]
    rows: Axis
    columns: Axis
    depth: int
    left: Side
    right: Side
    epilogue: Expression
    output: Size


def problem_of(kernel: Template, architecture: Architecture) -> Problem:
    """The kernel's product with as few batch axes as its strides allow, wide rather than tall."""
    a, b = kernel.inputs
    assert a is not None and b is not None
    *lead, columns = kernel.axes
    index = tuple(loop_index(axis.name, axis.size) for axis in kernel.axes)
    left_at = _offset(a, (*_batch_index(a, kernel, index), index[-2], 0))
    right_at = _offset(b, (*_batch_index(b, kernel, index), 0, index[-1]))
    # Only the offsets matter here: axes that all of them step through evenly become one.
    stores = (
        Store(kernel.output.buffer, output_offset(kernel), kernel.epilogue),
        Store(a.buffer, left_at, kernel.epilogue),
        Store(b.buffer, right_at, kernel.epilogue),
    )
    nest = merge(Nest((*(axis for axis in lead if axis.size != 1), columns), stores), kept=1)
    output, left, right = nest.stores
    *batch, columns = nest.axes
    rows = Axis("row", 1)
    if batch and coefficient(right.offset, batch[-1].name) == 0:
        rows = batch.pop()
    p = Problem(
        tuple(batch),
        rows,
        columns,
        integer(a.shape[-1]),
        _side(a, left.offset, batch, rows, -1),
        _side(b, right.offset, batch, columns, -2),
        output.value,
        output.offset,
    )
    lanes = architecture.vector_bytes // 4
    if integer(columns.size) * 4 <= lanes and integer(rows.size) > integer(columns.size):
        p = replace(p, rows=p.columns, columns=p.rows, left=p.right, right=p.left)
    return p


def _is_scattered(view: View) -> bool:
    """Whether a sum would touch so many pages, for each panel anew, that a copy costs less."""
    rows, depth = (integer(size) for size in view.shape[-2:])
    return integer(view.strides[-1]) * 4 >= PAGE // 4 and depth >= 256 and rows >= 64


def integer(size: Size | None) -> int:
    """A size that is known."""
    assert isinstance(size, int)
    return size


def _batch_index(view: View, kernel: Template, index: tuple[Size, ...]) -> tuple[Size, ...]:
    wide = tuple(axis.size for axis in kernel.axes)
    return broadcast_index(view.shape[:-2], wide[:-2], index[:-2])


def _offset(view: View, index: tuple[Size, ...]) -> Size:
    offset = view.offset
    for i, stride in zip(index, view.strides, strict=True):
        offset = offset + i * stride
    return offset


def _side(view: View, offset: Size, batch: list[Axis], outer: Axis, depth: int) -> Side:
    axes = (*batch, outer)
    steps = [integer(coefficient(offset, axis.name)) for axis in axes]
    start = integer(substitute(offset, {axis.name: 0 for axis in axes}))
    return Side(view.buffer, start, tuple(steps[:-1]), steps[-1], integer(view.strides[depth]))


@dataclass(frozen=True)
class Schedule:
    """How a product is cut."""

    rows: tuple[int, ...]
    """Rows of each tile, the larger ones first."""
    vectors: tuple[int, ...]
    """Vectors of columns of each panel, the wider ones first."""
    block: int
    """Steps of the sum that are done for a group of tiles before the next ones."""
    packs: bool
    """Whether panels of the right side are copied."""
    dots: bool
    """Whether lanes run along the sum."""
    unroll: int


def schedule_of(p: Problem, architecture: Architecture) -> Schedule:
    """The schedule that is likely to be fast."""
    lanes = architecture.vector_bytes // 4
    rows, columns = integer(p.rows.size), integer(p.columns.size)
    vectors = -(-columns // lanes)
    if p.right.depth == 1 and p.left.depth == 1 and p.right.outer != 1 and rows <= 6:
        return Schedule(_split(rows, 1), _split(vectors, 1), p.depth, False, True, 1)
    many = architecture.vector_registers >= 32
    most = 14 if many and p.left.outer * 4 % PAGE else 6
    tiles = _split(rows, most)
    tall = max(tiles, default=1)
    # A single row streams the right side: the longer the stretches of its rows, the better.
    wide = min(8 if tall > 1 else 24, max(2, (24 if many else 12) // tall))
    if len(tiles) == 1:
        # Panels are all there is to share: leave several to each thread.
        batch = math.prod(integer(axis.size) for axis in p.batch)
        wide = min(wide, max(2 if tall > 2 else 4, batch * vectors // 8))
    panels = _split(vectors, wide)
    packs = p.right.outer != 1 or len(tiles) >= 4
    block = p.depth
    if packs:
        wide = max(panels, default=1)
        blocks = -(-p.depth * 4 * lanes * wide // PANEL_BYTES)
        block = -(-p.depth // max(1, blocks) // lanes) * lanes if blocks > 1 else p.depth
    unroll = 2 if tall > 6 or max(panels, default=1) > 12 else 4
    return Schedule(tiles, panels, max(block, 1), packs, False, unroll)


def _split(total: int, most: int) -> tuple[int, ...]:
    return tuple(split_even(total, most)) if total else ()
