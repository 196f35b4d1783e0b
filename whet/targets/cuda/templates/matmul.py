"""Matrix products of any strides and leading axes, on matrix units where the dtype has them."""

from __future__ import annotations

from dataclasses import dataclass

from whet.ir.graph import Op, Value, operator
from whet.ir.sizes import Size, coefficient, symbol
from whet.ir.types import NUMPY_DTYPES
from whet.ops.contract import MatMul
from whet.ops.elementwise import Cast
from whet.ops.quantize import EIGHT_BITS, SIGN, signed, sums
from whet.ops.reduce import Reduce
from whet.plan.kernel import Axis, Nest, Store, Template, View
from whet.plan.loops import merge
from whet.plan.lower import broadcast_index, loop_index
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.expressions import Emitter, Place, R, X
from whet.targets.cuda.source import Source
from whet.targets.cuda.templates import persistent, tiling
from whet.targets.cuda.templates.contraction import Code, Problem, integer, turns
from whet.targets.cuda.templates.persistent import Persistent, PersistentCode
from whet.targets.cuda.templates.stream import StreamCode
from whet.targets.cuda.told import is_whole

DTYPES = ("float16", "bfloat16", "float32")


@operator
class Product(MatMul):
    """A matrix product that this target runs whole; 16-bit floats add up in float32, int8 in
    int32."""


class ProductTemplate:
    """a[..., M, K] @ b[..., K, N]."""

    has_epilogue = True
    has_strided_output = True

    def takes(self, op: Op, position: int, view: View) -> bool:
        return True

    def legalize(self, value: Value, architecture: Architecture) -> Value | None:
        if type(value.op) is not MatMul:
            return None
        a, b = value.inputs
        assert a is not None and b is not None
        if 0 in (*value.shape, *a.shape):
            return None
        if value.op.accumulate is not None:
            return integer_product(value.op, a, b)
        if value.dtype not in DTYPES:
            return None
        product: Value = Product()(a, b)
        return product

    def tiles(self, kernel: Template, architecture: Architecture) -> list[tiling.Tile]:
        p = problem_of(kernel)
        shape = shape_of(p, dtype_of(kernel))
        return persistent.among(tiling.ranked(shape, architecture), kernel, p, shape, architecture)

    def close(
        self, kernel: Template, architecture: Architecture, factor: float
    ) -> list[tiling.Tile]:
        return tiling.close(shape_of(problem_of(kernel), dtype_of(kernel)), architecture, factor)

    def generate(
        self, kernel: Template, architecture: Architecture, tile: tiling.Tile, name: str = "kernel"
    ) -> Source:
        code = StreamCode if tile.split == tiling.STREAM else Code
        code = PersistentCode if isinstance(tile, Persistent) else code
        made = code(kernel, problem_of(kernel), tile, architecture, dtype_of(kernel))
        return made.generate(name)


def integer_product(op: MatMul, a: Value, b: Value) -> Value | None:
    """A product of 8-bit integers by int8, which matrix units take: of others 128 is taken off, and
    what that takes off the sums is added again."""
    if op.accumulate != "int32" or a.dtype not in EIGHT_BITS or b.dtype not in EIGHT_BITS:
        return None
    low = signed(b)
    total: Value = Product("int32")(signed(a), low)
    if a.dtype == "uint8":
        total = total + sums(op, low) * SIGN
    if b.dtype == "uint8":
        total = total + Reduce("sum", (a.rank - 1,))(Cast("int32")(a)) * SIGN
    return total


def dtype_of(kernel: Template) -> str:
    """The dtype of both sides."""
    left = kernel.inputs[0]
    assert left is not None
    return left.dtype


def shape_of(p: Problem, dtype: str) -> tiling.Shape:
    """What the cost of a problem depends on."""
    width = NUMPY_DTYPES[dtype].itemsize
    batch, rows = integer(turns(p.batch)), integer(turns(p.rows))
    return tiling.Shape(batch, rows, integer(p.column.size), integer(p.depth), width)


@dataclass(frozen=True)
class Side:
    """One operand: where its elements lie, by the loop indices and the depth."""

    buffer: int
    offset: Size
    is_left: bool

    def __call__(self, code: Code, e: Emitter, step: str) -> str:
        """The load of the tile of a step."""
        depth, t, k = code.problem.depth, code.tile, code.depth_of(step)
        ragged, end = not is_whole(depth, t.depth), code.number(depth)
        places = {**code.batch, **code.by_row}
        if self.is_left:
            at = code.text.assign(code.arange(k, t.depth, "r"), "k")
            places["depth"] = Place(at, R)
            masks = {
                "x": code.row_mask,
                "r": code.text.assign(f"{at} < {end}", "m") if ragged else "",
            }
        else:
            at = code.text.assign(code.arange(k, t.depth, "x"), "k")
            places |= {"depth": Place(at, X), code.problem.column.name: code.column}
            masks = {
                "x": code.text.assign(f"{at} < {end}", "m") if ragged else "",
                "r": code.column_mask,
            }
        with e.scope(places=places):
            return code.load(e, self.buffer, self.offset, {d: m for d, m in masks.items() if m})


def problem_of(kernel: Template) -> Problem:
    """The kernel's product with as few loops as its index maps allow."""
    a, b = kernel.inputs
    assert a is not None and b is not None
    *lead, columns = kernel.axes
    index = tuple(loop_index(axis.name, axis.size) for axis in kernel.axes)
    wide = tuple(axis.size for axis in kernel.axes)
    depth = a.shape[-1]
    k: Size = symbol("depth", 0, depth - 1)
    left = offset_of(a, (*broadcast_index(a.shape[:-2], wide[:-2], index[:-2]), index[-2], k))
    right = offset_of(b, (*broadcast_index(b.shape[:-2], wide[:-2], index[:-2]), k, index[-1]))
    output = offset_of(kernel.output, index)
    # Only the offsets matter here: loops that all of them step through evenly become one.
    stores = (
        Store(kernel.output.buffer, output, kernel.epilogue),
        Store(a.buffer, left, kernel.epilogue),
        Store(b.buffer, right, kernel.epilogue),
    )
    nest = merge(Nest((*(axis for axis in lead if axis.size != 1), columns), stores), kept=1)
    *outer, column = nest.axes
    out, left, right = nest.stores[0], nest.stores[1].offset, nest.stores[2].offset
    rows = tuple(axis for axis in outer if coefficient(right, axis.name) == 0)
    batch = tuple(axis for axis in outer if axis not in rows)
    if not rows:
        rows = (Axis("row", 1),)
    return Problem(
        batch,
        rows,
        column,
        depth,
        Side(a.buffer, left, True),
        Side(b.buffer, right, False),
        lambda places: places,
        out.value,
        out.offset,
        (left, right),
        (b.buffer, right),
    )


def offset_of(view: View, index: tuple[Size, ...]) -> Size:
    """Where an element of a view lies."""
    offset = view.offset
    for i, stride in zip(index, view.strides, strict=True):
        offset = offset + i * stride
    return offset
