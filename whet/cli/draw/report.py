"""What the inspector found, as one picture and as one page."""

from __future__ import annotations

from collections.abc import Sequence

from whet.cli.draw import charts, diagram, page, svg
from whet.cli.draw.table import kernels_table
from whet.plan.describe import arena_of, buffers
from whet.plan.plan import Plan
from whet.runtime.inspect import Inspection, Kernel

NARROWEST = 900.0


class Report:
    """An inspection under a title, with lines that say what is most worth knowing."""

    def __init__(self, inspection: Inspection, title: str, lines: Sequence[str]) -> None:
        assert inspection.plan is not None, "pictures are of plans"
        self.inspection, self.title, self.lines = inspection, title, lines
        self.plan: Plan = inspection.plan
        by_step = {kernel.step: kernel for kernel in inspection.kernels}
        self.kernels: list[Kernel] = [by_step[s] for s in self.plan.steps if s in by_step]
        self.diagram = diagram.of_plan(self.plan, self.kernels)

    def charts(self, width: float) -> list[svg.Picture]:
        """Times, where they were measured, and the memory plan."""
        sizes = self.inspection.sizes
        arena, _ = arena_of(self.plan, sizes)
        numbers = [kernel.number for kernel in self.kernels]
        held = buffers(self.plan, sizes)
        drawn = [charts.memory(held, arena, numbers, width)] if held else []
        if self.inspection.seconds is not None:
            drawn.insert(0, charts.times(self.kernels, width))
        return drawn

    def svg(self) -> str:
        """One picture, for a document."""
        drawn = svg.draw(self.diagram)
        below = self.charts(max(drawn.width, NARROWEST))
        return svg.stacked([svg.heading(self.title, self.lines), drawn, *below]).svg()

    def html(self) -> str:
        """One page, which loads nothing."""
        drawn = svg.draw(self.diagram)
        return page.page(
            self.title,
            self.lines,
            self.diagram,
            drawn,
            self.charts(1280.0),
            kernels_table(self.inspection),
            str(self.plan),
        )
