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
        return all(isinstance(s, int) for s in (*view.strides, *view.shape, view.offset))

    def legalize(self, value: Value, architecture: Architecture) -> Value | None:
        op = value.op
        if type(op) is not Attention or value.dtype not in FLOATS or not isinstance(op.offset, int):
            return None
        if not are_static(value) or 0 in value.inputs[1].shape:  # type: ignore[union-attr]
            return None
        inputs = [i if i is None else cast(i, "float32") for i in value.inputs]
        run = FlashAttention(op.scale, op.softcap, op.left, op.right, op.offset)
        return cast(run(*inputs), value.dtype)

    def generate(self, kernel: Template, architecture: Architecture, name: str) -> Module:
        from whet.targets.cpu.templates.flash import FlashCode

        problem = problem_of(kernel)
        schedule = schedule_of(problem, architecture)
        return FlashCode(kernel, problem, schedule, architecture, name).generate()


@dataclass(frozen=True)
class Operand:
    """Where a tensor of four axes lies: batch, head, row, column; strides in elements."""

    buffer: int
    start: int
    strides: tuple[int, int, int, int]


@dataclass(frozen=True)
class Problem:
    """One attention: sizes, and where its tensors lie."""

    op: FlashAttention
    batch: int
    heads: int
    groups: int
    queries: int
    keys: int
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
    def rows(self) -> int:
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
    batch, heads, queries, width = (integer(axis.size) for axis in kernel.axes)
    op = kernel.op
    assert isinstance(op, FlashAttention)
    return Problem(
        op,
        batch,
        heads,
        integer(k.shape[1]),
        queries,
        integer(k.shape[2]),
        integer(q.shape[3]),
        width,
        _operand(q),
        _operand(k),
        _operand(v),
        _operand(rest[0]) if rest and rest[0] is not None else None,
    )


def _operand(view: View) -> Operand:
    steps: list[Size] = [0 if n == 1 else s for n, s in zip(view.shape, view.strides)]
    strides = [integer(s) for s in [0] * (4 - len(steps)) + steps]
    return Operand(view.buffer, integer(view.offset), tuple(strides))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Schedule:
    """How an attention is cut."""

    tiles: tuple[int, ...]
    """Rows of each tile, the larger ones first."""
    blocks: tuple[int, ...]
    """Keys of each block, whole vectors but for the last."""
    vectors: int
    """Vectors of a register tile."""
    packs: bool
    """Whether keys and values are copied, block by block."""


def schedule_of(p: Problem, architecture: Architecture) -> Schedule:
    """The schedule that is likely to be fast."""
    lanes = architecture.vector_bytes // 4
    many = architecture.vector_registers >= 32
    tiles = tuple(split_even(p.rows, 14 if many else 6)) if p.rows else ()
    # A few rows read keys and values once: copies would cost more than they save.
    direct = p.rows <= 4 and p.k.strides[3] == 1 and p.v.strides[3] == 1
    most = max(2 * lanes, BLOCK_BYTES // (4 * (p.depth + p.width + 1)) // lanes * lanes)
    vectors = split_even(-(-p.keys // lanes), most // lanes) if p.keys else []
    blocks = [v * lanes for v in vectors]
    if blocks:
        blocks[-1] = p.keys - sum(blocks[:-1])
    return Schedule(tiles, tuple(blocks), 2, not direct)
