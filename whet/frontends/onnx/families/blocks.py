"""ONNX operators between pixels and blocks of pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from whet.frontends.onnx.families.movement import zero
from whet.frontends.onnx.registry import onnx_op
from whet.ir.graph import Value, constant
from whet.ir.sizes import Size, floor_divide, product
from whet.ops import elementwise as ew
from whet.ops import movement as mv
from whet.ops import reduce as rd
from whet.ops.index import number, positions

if TYPE_CHECKING:
    from whet.frontends.onnx.importer import Reading


@onnx_op
def DepthToSpace(x: Value, *, blocksize: int, mode: str = "DCR") -> Value:
    n, c, h, w = x.shape
    b, depth = blocksize, floor_divide(c, blocksize * blocksize)
    if mode == "DCR":
        blocks = mv.transpose(mv.reshape(x, n, b, b, depth, h, w), 0, 3, 4, 1, 5, 2)
    else:
        blocks = mv.transpose(mv.reshape(x, n, depth, b, b, h, w), 0, 1, 4, 2, 5, 3)
    return mv.reshape(blocks, n, depth, h * b, w * b)


@onnx_op
def SpaceToDepth(x: Value, *, blocksize: int, mode: str = "DCR") -> Value:
    n, c, h, w = x.shape
    b = blocksize
    blocks = mv.reshape(x, n, c, floor_divide(h, b), b, floor_divide(w, b), b)
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return mv.reshape(
        mv.transpose(blocks, *order), n, c * b * b, floor_divide(h, b), floor_divide(w, b)
    )


@dataclass(frozen=True)
class Tiling:
    """How blocks lie along one axis of an image."""

    size: Size
    kernel: Size
    stride: int
    dilation: int
    before: int
    after: int

    @property
    def count(self) -> Size:
        """The number of blocks."""
        room = self.size + self.before + self.after - (self.kernel - 1) * self.dilation - 1
        return floor_divide(room, self.stride) + 1

    def covering(self, axis: int, rank: int) -> tuple[Value, Value]:
        """The block whose tap (axis rank + `axis`) lies on a pixel (`axis`); is there one?"""
        offset = positions(self.size, 2 * rank, axis) + self.before
        offset = offset - positions(self.kernel, 2 * rank, rank + axis) * self.dilation
        index = ew.Div()(offset, self.stride)
        aligned = ew.Equal()(index * self.stride, offset)
        starts = ew.LessOrEqual()(constant(0, "int64"), offset)
        ends = ew.Less()(index, number(self.count, "int64"))
        return index, ew.And()(aligned, ew.And()(starts, ends))


@onnx_op
def Col2Im(
    x: Value,
    image_shape: Value,
    block_shape: Value,
    *,
    dilations: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
    node: Reading,
) -> Value:
    """Each pixel sums the elements of the blocks that cover it."""
    image = node.counts(image_shape, "the image shape of Col2Im")
    block = node.counts(block_shape, "the block shape of Col2Im")
    rank = len(image)
    ones, none = (1,) * rank, (0,) * 2 * rank
    sides = (pads or none)[:rank], (pads or none)[rank:]
    tilings = [Tiling(*t) for t in zip(image, block, strides or ones, dilations or ones, *sides)]
    where, inside = _column(tilings)
    taps = product(block)
    columns = mv.reshape(x, x.shape[0], floor_divide(x.shape[1], taps), taps * x.shape[2])
    covering = ew.Where()(inside, mv.Gather(2)(columns, where), zero(x))
    axes = tuple(range(2 + rank, 2 + 2 * rank))
    return mv.squeeze(rd.Reduce("sum", axes)(covering), *axes)


def _column(tilings: list[Tiling]) -> tuple[Value, Value]:
    """For [pixel..., tap...]: which element of a channel's columns lies there, and if one does."""
    rank = len(tilings)
    tap, block, inside = constant(0, "int64"), constant(0, "int64"), constant(True)
    for axis, tiling in enumerate(tilings):
        index, fits = tiling.covering(axis, rank)
        tap = tap * number(tiling.kernel, "int64") + positions(tiling.kernel, 2 * rank, rank + axis)
        block = block * number(tiling.count, "int64") + index
        inside = ew.And()(inside, fits)
    where = tap * number(product(t.count for t in tilings), "int64") + block
    return ew.Where()(inside, where, constant(0, "int64")), inside
