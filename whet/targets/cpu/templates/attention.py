"""Attention without a matrix of scores in memory (Dao et al., FlashAttention, 2022).

A tile of queries meets block after block of keys: scores, their running maximum and sum stay in
the first-level cache, and so do the results, which are rescaled when the maximum grows.
"""

from __future__ import annotations

from dataclasses import dataclass

from whet.ir.graph import Op, Value, operator
from whet.ir.sizes import Size
from whet.ops.attention import Attention
from whet.plan.kernel import Template, View
from whet.targets.cpu.architecture import Architecture
from whet.targets.cpu.llvm import Module
from whet.targets.cpu.templates.matmul import FLOATS, are_static, cast, integer
from whet.targets.cpu.templates.range_grid import Stretch
from whet.targets.cpu.templates.specification import Extent
from whet.targets.cpu.templates.tiling import split_even

BLOCK_BYTES = 256 << 10  # of copied keys and values, kept in the second-level cache


@operator
class FlashAttention(Attention):
    """Attention in float32 that this target runs whole."""


class AttentionTemplate:
    """Attention of any head sizes and strides, with grouped heads, mask, window and softcap."""

    has_epilogue = True
    has_strided_output = True

    def takes(self, op: Op, position: int, view: View) -> bool:
        if all(isinstance(s, int) for s in (*view.strides, *view.shape, view.offset)):
            return True
        # The strides of batch and heads may be told, and those of a mask's rows.
        if position == 3:
            return view.strides[-1] in (0, 1)
        return isinstance(view.strides[2], int) and view.strides[3] == 1

    def legalize(self, value: Value, architecture: Architecture) -> Value | None:
        op = value.op
        if type(op) is not Attention or value.dtype not in FLOATS or not isinstance(op.offset, int):
            return None
        if not are_static(value) and not _are_told(value):
            return None
        if 0 in value.inputs[1].shape:  # type: ignore[union-attr]
            return None
        inputs = [i if i is None else cast(i, "float32") for i in value.inputs]
        run = FlashAttention(op.scale, op.softcap, op.left, op.right, op.offset)
        return cast(run(*inputs), value.dtype)

    def generate(self, kernel: Template, architecture: Architecture, name: str) -> Module:
        from whet.targets.cpu.templates.flash import FlashCode

        problem = problem_of(kernel)
        schedule = schedule_of(problem, architecture)
        return FlashCode(kernel, problem, schedule, architecture, name).generate()


def _are_told(value: Value) -> bool:
    """Whether a run tells no more than the batch and the lengths, and nothing is stretched."""
    q, k, v, *rest = value.inputs
    assert q is not None and k is not None and v is not None
    fixed = (*q.shape[1::2], *k.shape[1::2], *v.shape[1::2])
    if not all(isinstance(size, int) for size in fixed) or k.shape[0] != q.shape[0]:
        return False
    if not rest or rest[0] is None:
        return True
    scores = (*q.shape[:3], k.shape[2])
    pairs = zip(reversed(rest[0].shape), reversed(scores))
    return rest[0].rank > 0 and all(size in (1, whole) for size, whole in pairs)


@dataclass(frozen=True)
class Operand:
    """Where a tensor of four axes lies: batch, head, row, column; strides in elements."""

    buffer: int
    start: Extent
    strides: tuple[Extent, Extent, Extent, Extent]


@dataclass(frozen=True)
class Problem:
    """One attention: sizes, and where its tensors lie."""

    op: FlashAttention
    batch: Extent
    heads: int
    groups: int
    queries: Extent
    keys: Extent
    depth: int
    width: int
    q: Operand
    k: Operand
    v: Operand
    mask: Operand | None

    @property
    def shared(self) -> int:
        """Query heads that read one head of keys."""
        return self.heads // self.groups

    @property
    def rows(self) -> Extent:
        """Queries of all heads that read one head of keys, in the order (head, query)."""
        return self.shared * self.queries

    @property
    def bounded(self) -> bool:
        """Whether a query sees some of the keys only, by their places."""
        return self.op.left is not None or self.op.right is not None


def problem_of(kernel: Template) -> Problem:
    """The kernel's attention."""
    q, k, v, *rest = kernel.inputs
    assert q is not None and k is not None and v is not None
    batch, heads, queries, width = (axis.size for axis in kernel.axes)
    op = kernel.op
    assert isinstance(op, FlashAttention)
    return Problem(
        op,
        batch,
        integer(heads),
        integer(k.shape[1]),
        queries,
        k.shape[2],
        integer(q.shape[3]),
        integer(width),
        _operand(q),
        _operand(k),
        _operand(v),
        _operand(rest[0]) if rest and rest[0] is not None else None,
    )


def _operand(view: View) -> Operand:
    steps: list[Size] = [0 if n == 1 else s for n, s in zip(view.shape, view.strides)]
    strides = [0] * (4 - len(steps)) + steps
    return Operand(view.buffer, view.offset, tuple(strides))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Schedule:
    """How an attention is cut."""

    tiles: tuple[int, ...]
    """Rows of each tile, the larger ones first; where a run tells their number, the sizes to choose
    from."""
    blocks: tuple[int, ...]
    """Keys of each block, whole vectors but for the last; the most of a block where a run tells."""
    vectors: int
    """Vectors of a register tile."""
    packs: bool
    """Whether keys and values are copied, block by block."""


def schedule_of(p: Problem, architecture: Architecture) -> Schedule:
    """The schedule that is likely to be fast."""
    lanes = architecture.vector_bytes // 4
    many = architecture.vector_registers >= 32
    tallest = 14 if many else 6
    most = max(2 * lanes, BLOCK_BYTES // (4 * (p.depth + p.width + 1)) // lanes * lanes)
    if isinstance(p.rows, int):
        tiles = tuple(split_even(p.rows, tallest)) if p.rows else ()
    else:
        tiles = Stretch.of(p.rows, tallest, 2).sizes
    if not isinstance(p.keys, int):
        return Schedule(tiles, (most,), 2, True)
    # A few rows read keys and values once: copies would cost more than they save.
    few = isinstance(p.rows, int) and p.rows <= 4
    direct = few and p.k.strides[3] == 1 and p.v.strides[3] == 1
    vectors = split_even(-(-p.keys // lanes), most // lanes) if p.keys else []
    blocks = [v * lanes for v in vectors]
    if blocks:
        blocks[-1] = p.keys - sum(blocks[:-1])
    return Schedule(tiles, tuple(blocks), 2, not direct)
