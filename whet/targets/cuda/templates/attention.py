"""Attention: which operators run whole, and how each is cut up."""

from __future__ import annotations

from dataclasses import replace

from whet.ir.graph import Op, Value
from whet.ops.attention import Attention
from whet.plan.kernel import Template, View
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.source import Source
from whet.targets.cuda.templates import warp_groups
from whet.targets.cuda.templates.contraction import integer
from whet.targets.cuda.templates.flash import Code, FlashAttention, Tile, padded, view_of
from whet.targets.cuda.templates.matmul import DTYPES

MOST_WIDTH = 256


class AttentionTemplate:
    """Attention of any strides, with grouped heads, mask, window and softcap."""

    has_epilogue = True
    has_strided_output = True

    def takes(self, op: Op, position: int, view: View) -> bool:
        return True

    def legalize(self, value: Value, architecture: Architecture) -> Value | None:
        op = value.op
        if type(op) is not Attention or value.dtype not in DTYPES or not isinstance(op.offset, int):
            return None
        q, k, v, *_ = value.inputs
        assert q is not None and k is not None and v is not None
        known = (value.shape[1], *(n for i in (q, k, v) for n in i.shape[1::2]))
        if not all(isinstance(n, int) for n in known):
            return None
        if 0 in (*value.shape, *k.shape) or max(q.shape[3], v.shape[3]) > MOST_WIDTH:  # type: ignore[type-var, operator]
            return None
        y: Value = FlashAttention(op.scale, op.softcap, op.left, op.right, op.offset)(*value.inputs)
        return y

    def tiles(self, kernel: Template, architecture: Architecture) -> list[Tile]:
        return ranked(kernel, architecture)

    def generate(
        self, kernel: Template, architecture: Architecture, tile: Tile, name: str = "kernel"
    ) -> Source:
        code = warp_groups.GroupsCode if isinstance(tile, warp_groups.Groups) else Code
        return code(kernel, architecture, tile).generate(name)


def tile_of(
    blocks: int, queries: int, keys: int, width: int, size: int, architecture: Architecture
) -> Tile:
    """The tile that is likely to be fast, for `blocks` heads of all batches."""
    if size > 2:
        tile = Tile(32, 32, 4, 2)
    elif width > 128:
        tile = Tile(64, 32, 4, 2)
    elif width > 64:
        tile = Tile(128, 64, 8, 3) if architecture.has_warp_groups else Tile(128, 32, 4, 3)
    else:
        tile = Tile(128, 64, 4, 3)
    rows, many = tile.rows, tile.keys
    while rows > 16 and (
        rows // 2 >= queries or _blocks(blocks, queries, rows) < architecture.multiprocessors
    ):
        rows //= 2
    while many > 16 and many // 2 >= keys:
        many //= 2
    warps = tile.warps if rows >= 64 or tile.warps <= 4 else 4
    return _fitting(Tile(rows, many, warps, tile.stages), width, size, architecture)


def _fitting(tile: Tile, width: int, size: int, architecture: Architecture) -> Tile:
    """The tile with as many stages as shared memory has room for."""
    stages = tile.stages
    while stages > 1 and (
        (2 * stages * tile.keys + tile.rows) * width * size > architecture.shared_bytes - 2048
    ):
        stages -= 1
    return replace(tile, stages=stages)


OTHERS = (
    Tile(64, 64, 4, 3),
    Tile(128, 64, 8, 3),
    Tile(128, 128, 8, 2),
    Tile(64, 128, 4, 2),
    Tile(32, 64, 4, 3),
    Tile(32, 128, 4, 2),
    Tile(16, 64, 4, 3),
    Tile(16, 128, 4, 2),
    Tile(32, 32, 2, 3),
    Tile(16, 32, 2, 3),
)


def ranked(kernel: Template, architecture: Architecture) -> list[Tile]:
    """The tile that is likely to be fast, and others that may be."""
    q, k = (view_of(view) for view in kernel.inputs[:2])
    batch, heads, queries, width = (integer(a.size) for a in kernel.axes)
    size, keys = 4 if q.dtype == "float32" else 2, integer(k.shape[2])
    wide = padded(max(integer(q.shape[3]), width))
    first = tile_of(batch * heads, queries, keys, wide, size, architecture)
    others = [
        _fitting(tile, wide, size, architecture)
        for tile in OTHERS
        if size == 2 and tile.rows < 2 * max(16, queries) and tile.keys < 2 * max(32, keys)
        if tile.rows * wide <= 128 * 128
    ]
    blocks = {t: _blocks(batch * heads, queries, t.rows) for t in others}
    others.sort(key=lambda t: (blocks[t] < architecture.multiprocessors, -t.rows * t.keys))
    found: list[Tile] = list(dict.fromkeys([first, *others]))
    groups = warp_groups.tile_of(kernel, architecture)
    if groups is not None:
        found.insert(0 if warp_groups.pays(kernel, groups, architecture) else 1, groups)
    return found


def _blocks(blocks: int, queries: int, rows: int) -> int:
    return blocks * -(-queries // rows)
