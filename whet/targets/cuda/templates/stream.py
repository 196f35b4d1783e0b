"""Products whose tiles do not fill the multiprocessors evenly: every block does as many steps as
the others, wherever tiles begin and end (Osama et al., Stream-K, 2023).

A tile that several blocks have a part of is finished by the one of them that comes last, which adds
the parts up in their order: two runs give the same bits.
"""

from __future__ import annotations

from whet.targets.cuda.templates import tiling
from whet.targets.cuda.templates.contraction import Code, Work, integer


class StreamCode(Code):
    """The function being written."""

    def work(self) -> Work:
        """All tiles that this block has a part of."""
        text, t = self.text, self.tile
        tiles, steps = integer(self.count), integer(self.steps)
        blocks = tiling.streams(t, self.architecture, tiles * steps)
        self.each, self.more = divmod(tiles * steps, blocks)
        text.line("pid = tl.program_id(0)")
        text.line(f"at = {self._begin('pid')}")
        text.line(f"end = at + {self.each} + (pid < {self.more}).to(tl.int32)")
        text.line(f"home = at // {self.steps}")
        with text.block("while at < end:"):
            text.line(f"tile = at // {self.steps}")
            text.line(f"first = at % {self.steps}")
            text.line(f"last = tl.minimum(first + end - at, {self.steps})")
            self.place("tile")
            self.accumulate("first", "last")
            text.line("at += last - first")
            text.line(f"ready = last - first == {self.steps}")
            with text.block(f"if last - first < {self.steps}:"):
                self._part()
            with text.block("if ready:"):
                self.epilogue()
        return Work((blocks, 1, 1), tiles, 8 * blocks * t.rows * t.columns)

    def _begin(self, block: str) -> str:
        """The first step of a block."""
        return f"{block} * {self.each} + tl.minimum({block}, {self.more})"

    def _owner(self, step: str) -> str:
        """The block that does a step."""
        long = self.each + 1
        later = f"{self.more} + ({step} - {self.more * long}) // {max(self.each, 1)}"
        return f"tl.where({step} < {self.more * long}, {step} // {long}, {later})"

    def _part(self) -> None:
        """Keeps a part of a tile; where it is the last to come, all of them added up."""
        text, t = self.text, self.tile
        area = t.rows * t.columns
        lane = f"tl.arange(0, {t.rows})[:, None] * {t.columns} + tl.arange(0, {t.columns})[None, :]"
        text.line(f"lane = {lane}")
        slot = f"(pid * 2 + (tile != home).to(tl.int32)).to(tl.int64) * {area}"
        text.line(f"tl.store(scratch + {slot} + lane, acc0)")
        text.line("tl.debug_barrier()")
        text.line(f"a = {self._owner(f'(tile * {self.steps})')}")
        text.line(f"b = {self._owner(f'(tile * {self.steps} + {self.steps - 1})')}")
        text.line('done = tl.atomic_add(counters + tile, 1, sem="acq_rel", scope="gpu")')
        text.line("ready = done == b - a")
        with text.block("if ready:"):
            text.line("tl.debug_barrier()")
            text.line(f"acc0 = tl.zeros(({t.rows}, {t.columns}), tl.float32)")
            with text.block("for k in range(a, b + 1):"):
                text.line(f"other = (({self._begin('k')}) // {self.steps} != tile).to(tl.int32)")
                text.line(f"slot = (k * 2 + other).to(tl.int64) * {area}")
                text.line('acc0 += tl.load(scratch + slot + lane, cache_modifier=".cg")')
            text.line("tl.store(counters + tile, 0)")
