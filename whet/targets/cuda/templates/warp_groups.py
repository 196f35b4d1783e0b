"""Attention on Hopper by groups of warps that each do their part (Shah et al., FlashAttention-3,
2024), in Gluon, Triton's language of explicit layouts.

A producer, one warp, asks for tiles of queries, keys and values through tensor-map descriptors.
Two consumers, four warps each, have 64 queries each: one's matrix products run beside the other's
exponentials, and its own product of weights and values beside those of the next scores. A block
stays, and takes tile after tile: what the next tile needs comes while this one ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from whet.ops.cast import Cast
from whet.plan.kernel import Apply, Hole, Template, View, walk
from whet.targets.cuda import arithmetic
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.source import Launch, Source
from whet.targets.cuda.templates.contraction import integer
from whet.targets.cuda.templates.flash import Code, FlashAttention, Tile, all_of, padded, view_of
from whet.targets.cuda.text import Text

ROWS = 64  # queries of a consumer: those of one matrix instruction
LINE = 64  # 16-bit numbers that the widest swizzle of shared memory mixes
ALIGNED = 8  # 16-bit numbers: what a descriptor's address and strides are multiples of
DESCRIPTOR = 128  # bytes
FEWEST_STEPS = 4
CONSUMER_REGISTERS, PRODUCER_REGISTERS = 240, 24

HEADER = """\
from triton.experimental import gluon
from triton.experimental.gluon import language as tl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

# What Triton 3.6 called otherwise.
copy = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
barrier = getattr(tl, "barrier", None) or tl.thread_barrier

"""


@dataclass(frozen=True)
class Groups(Tile):
    """A tile that groups of warps work on."""


def tile_of(kernel: Template, architecture: Architecture) -> Groups | None:
    """How a kernel runs so; None where it cannot."""
    if not runs(kernel, architecture):
        return None
    width = max(integer(view_of(kernel.inputs[n]).shape[3]) for n in (0, 2))
    return Groups(2 * ROWS, 128 if width <= 128 else 64, 4, 2)


def pays(kernel: Template, tile: Groups, architecture: Architecture) -> bool:
    """Whether it is likely to be fastest so: beginning takes some 5 us longer than with others,
    and no tile is small."""
    batch, heads, queries, _ = (integer(a.size) for a in kernel.axes)
    blocks = batch * heads * -(-queries // tile.rows)
    steps = -(-integer(view_of(kernel.inputs[1]).shape[2]) // tile.keys)
    return steps >= FEWEST_STEPS and 3 * blocks >= architecture.multiprocessors


def runs(kernel: Template, architecture: Architecture) -> bool:
    """Whether a kernel is one that this code is for; the rest is flash.py's."""
    op, (q, k, v) = kernel.op, (view_of(view) for view in kernel.inputs[:3])
    assert isinstance(op, FlashAttention)
    return (
        architecture.capability == 90
        and q.dtype in ("float16", "bfloat16")
        and all(view is None for view in kernel.inputs[3:])
        and op.softcap <= 0 < op.scale
        and min(integer(q.shape[2]), integer(k.shape[2])) > ROWS
        and integer(v.shape[3]) > 1
        and all(map(can_be_described, (q, k, v)))
        and is_plain(kernel)
    )


def can_be_described(view: View) -> bool:
    """Whether a descriptor can say where a tensor lies."""
    *outer, last = (integer(s) for s in view.strides)
    steps = [s for s, n in zip(outer, view.shape) if n != 1]
    return (
        last == 1
        and integer(view.offset) % ALIGNED == 0
        and all(s > 0 and s % ALIGNED == 0 for s in steps)
    )


def is_plain(kernel: Template) -> bool:
    """Whether nothing but a change of dtype is computed from the result."""
    nodes: Iterable[object] = walk(kernel.epilogue)
    return all(
        isinstance(node, Hole) or (isinstance(node, Apply) and isinstance(node.op, Cast))
        for node in nodes
    )


def columns(width: int) -> int:
    """A width as tiles in shared memory have it."""
    return max(LINE, padded(width))


class GroupsCode(Code):
    """The functions being written."""

    def __init__(self, kernel: Template, architecture: Architecture, tile: Tile) -> None:
        super().__init__(kernel, architecture, tile)
        self.deep, self.wide = columns(self.depth), columns(self.width)
        self.programs = min(integer(self.count), architecture.multiprocessors)
        self.y = self.names[kernel.output.buffer]

    def generate(self, name: str = "kernel") -> Source:
        """The whole kernel: where a tile's queries and keys are, both roles, and their start."""
        parts = (
            self._written("place", ("tile",), self._place),
            self._written("produce", PRODUCED, self._produce),
            self._written("consume", ("part: tl.constexpr", self.y, *SHARED), self._consume),
            self._written(name, ("error", *self.names), self._start),
        )
        launch = Launch(
            name,
            (self.programs, 1, 1),
            ("error", *range(len(self.names))),
            ("*i32", *(arithmetic.POINTER[d] for d in self.kernel.buffers)),
            scratch=3 * DESCRIPTOR * self.programs,
            spread=True,
        )
        return Source(HEADER + "\n".join(parts), (launch,))

    def _written(self, name: str, arguments: tuple[str, ...], write: Callable[[], None]) -> str:
        self.text = Text()
        write()
        return self.text.function(name, arguments, "gluon")

    def _place(self) -> None:
        """A tile's batch, head and first query, and its steps."""
        text, op, t = self.text, self.op, self.tile
        heads = self.batch * self.heads
        if op.right is None:
            # Blocks that run at a time read the keys of few heads.
            text.line(f"begin = tile % {self.blocks} * {t.rows}")
            text.line(f"row = tile // {self.blocks}")
        else:
            # The last queries first: theirs are the longest rows.
            text.line(f"begin = ({self.blocks - 1} - tile // {heads}) * {t.rows}")
            text.line(f"row = tile % {heads}")
        first, end = "0", str(-(-self.keys // t.keys))
        if op.left is not None:
            first = f"tl.maximum(begin + {op.offset - op.left}, 0) // {t.keys}"
        if op.right is not None:
            seen = f"tl.maximum(begin + {t.rows + op.offset + op.right + t.keys - 1}, 0)"
            end = f"tl.minimum({seen} // {t.keys}, {end})"
        text.line(f"first = {first}")
        # Where no key is seen, one step finds that out.
        text.line(f"end = tl.maximum({end}, first + 1)" if self._is_bounded else f"end = {end}")
        text.line(f"return row // {self.heads}, row % {self.heads}, begin, first, end")

    @property
    def _is_bounded(self) -> bool:
        """Whether some query does not see some key."""
        return self.op.left is not None or self.op.right is not None

    def _tiles(self) -> str:
        return f"for tile in range(tl.program_id(0), {self.count}, {self.programs}):"

    def _produce(self) -> None:
        text, t = self.text, self.tile
        text.line("step = 0")
        text.line("turn = 0")
        with text.block(self._tiles()):
            text.line("batch, head, begin, first, end = place(tile)")
            text.line("mbarrier.wait(q_empty.index(0), turn & 1 ^ 1)")
            text.line(f"mbarrier.expect(q_full.index(0), {2 * t.rows * self.deep})")
            for part, row in enumerate(("begin", f"begin + {ROWS}")):
                at = self._corner(self.q, "head", row)
                text.line(f"copy(q_map, {at}, q_full.index(0), q.index({part}))")
            text.line("turn += 1")
            with text.block("for i in range(first, end):"):
                self._slot()
                many = self.heads // self.groups
                group = f"head // {many}" if many > 1 else "head"
                for x, view, width in (("k", self.k, self.deep), ("v", self.v, self.wide)):
                    at = self._corner(view, group, f"i * {t.keys}")
                    text.line(f"mbarrier.wait({x}_empty.index(slot), phase ^ 1)")
                    text.line(f"mbarrier.expect({x}_full.index(slot), {2 * t.keys * width})")
                    text.line(f"copy({x}_map, {at}, {x}_full.index(slot), {x}.index(slot))")
                text.line("step += 1")

    def _corner(self, view: View, head: str, row: str) -> str:
        """Where a tile begins, in a tensor's four axes."""
        outer = [i if n != 1 else "0" for i, n in zip(("batch", head), view.shape)]
        return f"[{', '.join((*outer, row, '0'))}]"

    def _consume(self) -> None:
        text, t = self.text, self.tile
        for name, width in (("scores", t.keys), ("result", self.wide)):
            instruction = f"[16, {width}, 16]"
            layout = f"tl.NVMMADistributedLayout([3, 0], [4, 1], {instruction})"
            text.line(f"{name}: tl.constexpr = {layout}")
        text.line("weights: tl.constexpr = tl.DotOperandLayout(0, result, 2)")
        text.line("s_rows: tl.constexpr = tl.SliceLayout(1, scores)")
        text.line("y_rows: tl.constexpr = tl.SliceLayout(1, result)")
        text.line(f"nr = tl.arange(0, {t.keys}, layout=tl.SliceLayout(0, scores))")
        text.line(f"none = tl.zeros([{ROWS}, {t.keys}], tl.float32, scores)")
        text.line(f"queries = q.index(part).reshape([{ROWS}, {self.deep}])")
        text.line("step = 0")
        text.line("turn = 0")
        with text.block(self._tiles()):
            text.line("batch, head, begin, first, end = place(tile)")
            text.line(f"begin += part * {ROWS}")
            text.line(f"m = begin + tl.arange(0, {ROWS}, layout=s_rows)")
            text.line(f"acc = tl.zeros([{ROWS}, {self.wide}], tl.float32, result)")
            text.line("mbarrier.wait(q_full.index(0), turn & 1)")
            self._first_step()
            with text.block("for i in range(first + 1, end):"):
                self._step()
            self._last_values()
            text.line("turn += 1")
            text.line("total = tl.convert_layout(total, y_rows)[:, None]")
            text.line("acc = acc * (1.0 / tl.where(total == 0.0, 1.0, total))")
            self._lanes_of_result()
            self._store(ROWS, self.wide)

    def _slot(self) -> None:
        self.text.line(f"slot = step % {self.tile.stages}")
        self.text.line(f"phase = step // {self.tile.stages} & 1")

    def _ask_scores(self) -> None:
        """Lets the matrix units begin with the scores of a step."""
        text, t = self.text, self.tile
        text.line("mbarrier.wait(k_full.index(slot), phase)")
        keys = f"k.index(slot).reshape([{t.keys}, {self.deep}]).permute((1, 0))"
        text.line(f"s = warpgroup_mma(queries, {keys}, none, use_acc=False, is_async=True)")

    def _ask_values(self, slot: str, phase: str) -> None:
        """… and with the sum of values by their weights."""
        text, t = self.text, self.tile
        text.line(f"mbarrier.wait(v_full.index({slot}), {phase})")
        values = f"v.index({slot}).reshape([{t.keys}, {self.wide}])"
        text.line(f"acc = warpgroup_mma(p, {values}, acc, is_async=True)")

    def _free(self, what: str) -> None:
        """Lets the producer write where all warps of this consumer have read."""
        self.text.line("barrier()")
        self.text.line(f"mbarrier.arrive({what}, count=1)")

    def _first_step(self) -> None:
        text, dtype = self.text, self.v.dtype
        self._slot()
        self._ask_scores()
        text.line("s = warpgroup_mma_wait(0, deps=[s])")
        self._free("k_empty.index(slot)")
        self._hide_some("first")
        text.line("top = tl.max(s, 1)")
        self._exponentials("top")
        text.line("total = tl.sum(w, 1)")
        text.line(f"p = tl.convert_layout(w.to(tl.{dtype}), weights)")

    def _step(self) -> None:
        text, dtype = self.text, self.v.dtype
        text.line("last = slot")
        text.line("last_phase = phase")
        text.line("step += 1")
        self._slot()
        self._ask_scores()
        self._ask_values("last", "last_phase")
        text.line("s = warpgroup_mma_wait(1, deps=[s])")
        self._free("k_empty.index(slot)")
        self._hide_some("i")
        text.line("grown = tl.maximum(top, tl.max(s, 1))")
        self._exponentials("grown")
        text.line(f"shrink = tl.exp2(top * {self.unit} - low)")
        text.line("total = total * shrink + tl.sum(w, 1)")
        text.line("top = grown")
        # Long since true: a branch, past which ptxas does not take the exponentials.
        text.line("mbarrier.wait(q_full.index(0), turn & 1)")
        text.line("acc, p, w = warpgroup_mma_wait(0, deps=[acc, p, w])")
        self._free("v_empty.index(last)")
        text.line("acc = acc * tl.convert_layout(shrink, y_rows)[:, None]")
        text.line(f"p = tl.convert_layout(w.to(tl.{dtype}), weights)")

    def _exponentials(self, top: str) -> None:
        text = self.text
        text.line(f'low = tl.where({top} == float("-inf"), 0.0, {top}) * {self.unit}')
        text.line(f"w = tl.exp2(s * {self.unit} - low[:, None])")

    def _last_values(self) -> None:
        text = self.text
        self._free("q_empty.index(0)")
        self._ask_values("slot", "phase")
        text.line("acc, p = warpgroup_mma_wait(0, deps=[acc, p])")
        self._free("v_empty.index(slot)")
        text.line("step += 1")

    def _hide_some(self, step: str) -> None:
        """What no query may see is as far below as can be, in steps that have such a thing."""
        op, t, text = self.op, self.tile, self.text
        some, tests = [], []
        if self.keys % t.keys or self._is_bounded:
            some.append(f"(start + {t.keys} > {self.keys})")
            tests.append(f"(n < {self.keys})[None, :]")
        if op.right is not None:
            bound = op.offset + op.right
            some.append(f"(start + {t.keys - 1} > begin + {bound})")
            tests.append(f"(n[None, :] <= m[:, None] + {bound})")
        if op.left is not None:
            bound = op.offset - op.left
            some.append(f"(start < begin + {ROWS - 1 + bound})")
            tests.append(f"(n[None, :] >= m[:, None] + {bound})")
        if tests:
            text.line(f"start = {step} * {t.keys}")
            with text.block(f"if {' | '.join(some)}:"):
                text.line("n = start + nr")
                text.line(f's = tl.where({all_of(*tests)}, s, float("-inf"))')

    def _lanes_of_result(self) -> None:
        """Where in the result this consumer writes."""
        text = self.text
        wide = "" if self.index == "tl.int32" else ".to(tl.int64)"
        text.line(f"m = (begin + tl.arange(0, {ROWS}, layout=y_rows)){wide}[:, None]")
        lanes = f"tl.arange(0, {self.wide}, layout=tl.SliceLayout(0, result)){wide}"
        text.line(f"e = {lanes}[None, :]")
        if wide:
            text.line(f"batch = batch{wide}")
            text.line(f"head = head{wide}")

    def _start(self) -> None:
        """Descriptors, room and barriers; then each group goes its way."""
        text, t = self.text, self.tile
        text.wait(self.architecture)
        text.line("words: tl.constexpr = mbarrier.MBarrierLayout()")
        text.line("tiles: tl.constexpr = tl.NVMMASharedLayout(128, 16, 4)")
        kinds = (
            ("q", self.q, ROWS, self.deep),
            ("k", self.k, t.keys, self.deep),
            ("v", self.v, t.keys, self.wide),
        )
        for name, view, rows, width in kinds:
            self._describe(name, view, f"[1, 1, {rows}, {width}]")
            count = 2 if name == "q" else t.stages
            room = f"[{count}, 1, 1, {rows}, {width}]"
            text.line(f"{name} = tl.allocate_shared_memory(tl.{view.dtype}, {room}, tiles)")
            self._make_barriers(name, 1 if name == "q" else count)
        consumers = [f"(consume, ({part}, {self.y}, {', '.join(SHARED)}))" for part in range(2)]
        groups = ", ".join((*consumers, f"(produce, ({', '.join(PRODUCED)}))"))
        registers = f"[{CONSUMER_REGISTERS}, {PRODUCER_REGISTERS}]"
        text.line(f"tl.warp_specialize([{groups}], [4, 1], {registers})")

    def _describe(self, name: str, view: View, box: str) -> None:
        """A descriptor of a tensor, from which boxes are read."""
        shape = list(map(integer, view.shape))
        # Where there is one of something, its stride says nothing, but must be a valid one.
        strides = [integer(s) if n != 1 else ALIGNED for s, n in zip(view.strides, shape)]
        at = self.names[view.buffer] + f" + {view.offset}" * (view.offset != 0)
        where = f"{at}, {shape}, {[*strides[:3], 1]}"
        self.text.line(f"{name}_map = tma.make_tensor_descriptor({where}, {box}, tiles)")

    def _make_barriers(self, name: str, count: int) -> None:
        """What says that slots are full, once the producer has, and empty, once both consumers
        have."""
        for barrier, arrivals in ((f"{name}_full", 1), (f"{name}_empty", 2)):
            room = f"tl.allocate_shared_memory(tl.int64, [{count}, 1], words)"
            self.text.line(f"{barrier} = {room}")
            for slot in range(count):
                self.text.line(f"mbarrier.init({barrier}.index({slot}), count={arrivals})")


SHARED = tuple(f"{x}{kind}" for x in "qkv" for kind in ("", "_full", "_empty"))
PRODUCED = ("q_map", "k_map", "v_map", *SHARED)
