"""Charts over the steps of a plan: what each takes, and where its results lie in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from whet.cli.draw.svg import MARGIN, TEXT_WIDTH, Picture, clean, few
from whet.cli.terminal import count, duration, size
from whet.plan.describe import Buffer
from whet.runtime.inspect import Kernel

LEFT = MARGIN + 72.0  # room for the numbers beside an axis
TOP, FOOT = 46.0, 42.0
LABEL = 15.0  # the height of a line of text within a rectangle


@dataclass(frozen=True)
class Frame:
    """The field of a chart: steps to the right, `most` of something from top to bottom."""

    numbers: Sequence[int]
    """What the steps are called."""
    width: float
    height: float
    most: float

    @property
    def steps(self) -> int:
        return len(self.numbers)

    @property
    def across(self) -> float:
        """The width of a step."""
        return (self.width - LEFT - MARGIN) / max(self.steps, 1)

    def x(self, step: float) -> float:
        return LEFT + self.across * step

    def tall(self, amount: float) -> float:
        return self.height * amount / max(self.most, 1e-12)

    def picture(self, title: str, marks: Sequence[tuple[float, str]], body: Sequence[str]) -> str:
        """The chart with its title, lines at the given heights, and numbers below the steps."""
        parts = [f'<text class="t" x="{MARGIN}" y="24">{clean(title)}</text>']
        right = self.x(self.steps)
        for amount, said in marks:
            y = TOP + self.tall(amount)
            parts.append(f'<path class="g" d="M{LEFT:.1f} {y:.1f}H{right:.1f}"/>')
            place = f'x="{LEFT - 6}" y="{y + 4:.1f}"'
            parts.append(f'<text class="l" text-anchor="end" {place}>{clean(said)}</text>')
        every = max(1, -(-self.steps // int((right - LEFT) / 34)))
        for step in range(0, self.steps, every):
            x, y = self.x(step + 0.5), TOP + self.height + 16
            parts.append(
                f'<text class="l" text-anchor="middle" x="{x:.1f}" y="{y}">'
                f"{self.numbers[step]}</text>"
            )
        foot = TOP + self.height + 32
        parts.append(f'<text class="l" x="{LEFT}" y="{foot}">number of the step</text>')
        return "\n".join([*parts, *body])


def shared(found: Sequence[Buffer], arena: int) -> str:
    """How much buffers take, together and each for itself."""
    if len(found) < 2:
        return f"{count(len(found), 'buffer')}, {size(arena)}"
    alone = size(sum(b.bytes for b in found))
    return f"{len(found)} buffers share {size(arena)}; each for itself they would take {alone}"


def memory(
    found: Sequence[Buffer], arena: int, numbers: Sequence[int], width: float = 1100
) -> Picture:
    """The arena over time: a rectangle is a buffer, as wide as it lives and as high as it is."""
    frame = Frame(numbers, width, 380.0, max(arena, 1))
    needed = [sum(b.bytes for b in found if b.first <= n <= b.last) for n in range(frame.steps)]
    most = max(needed, default=0)
    title = f"Memory: {shared(found, arena)}"
    if needed:
        title += f"; step {numbers[needed.index(most)]} needs most, {size(most)}"
    marks = [(arena * quarter / 4, size(arena * quarter / 4)) for quarter in range(5)]
    body = [_rectangle(b, frame) for b in found]
    return Picture(frame.picture(title, marks, body), width, TOP + frame.height + FOOT)


def _rectangle(b: Buffer, frame: Frame) -> str:
    x, y = frame.x(b.first), TOP + frame.tall(b.start)
    wide, high = frame.across * (b.last - b.first + 1), max(frame.tall(b.bytes), 0.75)
    first, last = frame.numbers[b.first], frame.numbers[b.last]
    hover = f"{b.title}\n{size(b.bytes)} at {b.start}, steps {first} to {last}"
    shape = f'x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{high:.2f}"'
    return (
        f'<g class="held" data-key="step {first}"><title>{few(hover)}</title>'
        f'<rect class="{b.kind}" stroke-width="0.8" {shape}/>'
        f"{_inside([size(b.bytes), b.short], x, y, wide, high)}</g>"
    )


def _inside(lines: Sequence[str], x: float, y: float, wide: float, high: float) -> str:
    """As many of the lines as a rectangle has room for, in its middle."""
    fitting = [line for line in lines if TEXT_WIDTH * len(line) + 6 <= wide]
    room = max(0, int((high - 2) // LABEL))
    fitting = fitting[:room] if lines[0] in fitting else []
    top = y + high / 2 - LABEL * len(fitting) / 2 + LABEL - 4
    return "".join(
        f'<text class="l" text-anchor="middle" x="{x + wide / 2:.1f}" y="{top + LABEL * n:.1f}">'
        f"{clean(line)}</text>"
        for n, line in enumerate(fitting)
    )


def times(kernels: Sequence[Kernel], width: float = 1100) -> Picture:
    """What each step takes; the line across a bar is the least that the device would need."""
    taken = [kernel.seconds or 0.0 for kernel in kernels]
    most = max(taken, default=0.0) or 1e-9
    frame = Frame([kernel.number for kernel in kernels], width, 200.0, most)
    whole = sum(taken)
    least = sum(kernel.least or 0.0 for kernel in kernels)
    title = f"Time: {duration(whole)} in all steps"
    if least:
        title += f"; at the device's limits {duration(least)}: the lines across the bars"
    marks = [(most * (1 - n / 4), duration(most * n / 4) if n else "0") for n in range(4, -1, -1)]
    body = [_bar(number, kernel, frame) for number, kernel in enumerate(kernels)]
    return Picture(frame.picture(title, marks, body), width, TOP + frame.height + FOOT)


def _bar(number: int, kernel: Kernel, frame: Frame) -> str:
    high = max(frame.tall(kernel.seconds or 0.0), 0.75)
    bottom, gap = TOP + frame.height, min(1.5, frame.across * 0.1)
    x, wide = frame.x(number) + gap, frame.across - 2 * gap
    told = [kernel.title, duration(kernel.seconds or 0.0)]
    line = ""
    if kernel.least is not None:
        y = bottom - min(frame.tall(kernel.least), frame.height)
        line = f'<path class="m" d="M{x:.1f} {y:.1f}h{wide:.1f}"/>'
        told.append(f"{duration(kernel.least)} at the limit of {kernel.bound}")
    hover = "\n".join([*told, *kernel.nodes])
    return (
        f'<g class="held" data-key="step {kernel.number}"><title>{few(hover)}</title>'
        f'<rect class="{kernel.kind}" stroke-width="0.8" x="{x:.1f}" y="{bottom - high:.1f}" '
        f'width="{wide:.1f}" height="{high:.2f}"/>{line}</g>'
    )
