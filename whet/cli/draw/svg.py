"""A diagram as SVG text, and what all pictures have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate, pairwise

from whet.cli.draw.diagram import KINDS, Box, Diagram
from whet.cli.draw.layers import Bend, Key, Layout, Point, lay_out

FONT = "font-family:system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif"
TITLE, TEXT = 13.0, 11.0
TITLE_WIDTH, TEXT_WIDTH = 8.0, 6.4  # of a letter, on average
MOST_LETTERS = 40
LINE = 15.0
PAD, STEP_GAP, COLUMN_GAP, MARGIN = 9.0, 26.0, 72.0, 24.0
LANES = 40.0  # room above and below the columns for arrows that go on in the next one
ASPECT = 1.7  # width over height that a picture should come near to

LIGHT = {
    "convolution": ("#dbe9fb", "#3b78c4"),
    "product": ("#e7e0fa", "#7553c4"),
    "attention": ("#fbdff0", "#c2408c"),
    "reduction": ("#d9f2ee", "#1d8a7a"),
    "loops": ("#e2f3d9", "#4f8f2f"),
    "movement": ("#eceff2", "#7b8794"),
    "reference": ("#fddcd6", "#d03a20"),
    "end": ("#fff6d6", "#b08a1a"),
}
DARK = {
    "convolution": ("#1e3350", "#6aa5ee"),
    "product": ("#30265a", "#a58bf0"),
    "attention": ("#4a1f3a", "#ee7dbd"),
    "reduction": ("#123f39", "#4cc2b0"),
    "loops": ("#24401a", "#86cc63"),
    "movement": ("#2b3138", "#9aa5b1"),
    "reference": ("#561d14", "#ff7b63"),
    "end": ("#453a12", "#e0b93f"),
}
INK, PAPER = ("#1c2430", "#ffffff"), ("#e6eaf0", "#14181d")


def style(scope: str = "") -> str:
    """The style sheet of the pictures; dark where the reader prefers that."""
    rules = [
        f"{scope} text{{{FONT};fill:{INK[0]}}}",
        f"{scope} .t{{font-size:{TITLE}px;font-weight:600}}",
        f"{scope} .l{{font-size:{TEXT}px;fill-opacity:.72}}",
        f"{scope} .a{{fill:none;stroke:#8a94a0;stroke-width:1.3}}",
        f"{scope} .h{{fill:#8a94a0}}",
        f"{scope} .g{{fill:none;stroke:#8a94a0;stroke-opacity:.3;stroke-dasharray:3 3}}",
        f"{scope} .m{{fill:none;stroke:#e0671f;stroke-width:2}}",
        *_colours(scope, LIGHT),
    ]
    dark = [f"{scope} text{{fill:{PAPER[0]}}}", *_colours(scope, DARK)]
    return "\n".join([*rules, "@media (prefers-color-scheme:dark){", *dark, "}"])


def _colours(scope: str, colours: dict[str, tuple[str, str]]) -> list[str]:
    return [f"{scope} .{k}{{fill:{fill};stroke:{edge}}}" for k, (fill, edge) in colours.items()]


@dataclass(frozen=True)
class Picture:
    """SVG elements and the room that they take."""

    body: str
    width: float
    height: float

    def svg(self, extra: str = "") -> str:
        """The whole document; its colours are in it."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width:.0f}" '
            f'height="{self.height:.0f}" viewBox="0 0 {self.width:.0f} {self.height:.0f}"{extra}>\n'
            f"<style>\n{style()}\n.paper{{fill:{INK[1]};stroke:none}}\n"
            f"@media (prefers-color-scheme:dark){{.paper{{fill:{PAPER[1]}}}}}\n</style>\n"
            f'<rect class="paper" width="100%" height="100%"/>\n{self.body}\n</svg>\n'
        )


def stacked(pictures: Sequence[Picture]) -> Picture:
    """Pictures one below the other."""
    parts, y = [], 0.0
    for picture in pictures:
        parts.append(f'<g transform="translate(0 {y:.1f})">\n{picture.body}\n</g>')
        y += picture.height
    return Picture("\n".join(parts), max(p.width for p in pictures), y)


def heading(title: str, lines: Sequence[str]) -> Picture:
    """A title with lines of text, and what the colours mean."""
    parts = [
        f'<text x="{MARGIN}" y="34" style="font-size:20px;font-weight:700">{clean(title)}</text>'
    ]
    y = 34.0
    for line in lines:
        y += 20
        parts.append(
            f'<text class="t" style="font-weight:400" x="{MARGIN}" y="{y}">{clean(line)}</text>'
        )
    x, y = MARGIN, y + 16
    for kind, said in KINDS.items():
        parts.append(f'<rect class="{kind}" x="{x:.1f}" y="{y}" width="14" height="14" rx="3"/>')
        parts.append(f'<text class="l" x="{x + 20:.1f}" y="{y + 11}">{clean(said)}</text>')
        x += 44 + TEXT_WIDTH * len(said)
    widest = max([x, *(MARGIN * 2 + TITLE_WIDTH * len(line) for line in lines)])
    return Picture("\n".join(parts), widest, y + 30)


def clean(text: str) -> str:
    """The text as XML can hold it, its lines kept."""
    return escape("".join(c if c.isprintable() or c == "\n" else "?" for c in text))


def _shorten(text: str) -> str:
    return text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 1] + "…"


def _box_size(box: Box) -> tuple[float, float]:
    letters = [TITLE_WIDTH * len(_shorten(box.title))]
    letters += [TEXT_WIDTH * len(_shorten(line)) for line in box.lines]
    return max(letters) + 2 * PAD, PAD * 2 + LINE * (1 + len(box.lines)) - 3


def draw(diagram: Diagram, aspect: float = ASPECT) -> Picture:
    """The diagram from top to bottom; a long one goes on in further columns, as in a newspaper."""
    sizes = {key: _box_size(box) for key, box in diagram.boxes.items()}
    if not sizes:
        return Picture("", 2 * MARGIN, 2 * MARGIN)
    layout = lay_out({key: w for key, (w, _) in sizes.items()}, list(diagram.arrows))
    page = Columns(layout, sizes, aspect)
    arrows = [_arrow(page, path, diagram.arrows[ends]) for ends, path in layout.paths.items()]
    boxes = [_box(box, page.place(key), sizes[key]) for key, box in diagram.boxes.items()]
    return Picture("\n".join([*arrows, *boxes]), page.width, page.height)


class Columns:
    """Where layers lie: one below the other, broken into columns."""

    def __init__(
        self, layout: Layout, sizes: dict[str, tuple[float, float]], aspect: float
    ) -> None:
        self.layout, self.sizes = layout, sizes
        self.tall = [
            max([sizes[k][1] for k in row if k in sizes], default=LINE) for row in layout.layers
        ]
        self.crossing = self._crossing()
        options = [self._break(count) for count in range(1, len(self.tall) // 8 + 2)]
        self.column = min(options, key=lambda column: self._misfit(column, aspect))
        self.width, self.height = self._measure(self.column)
        self._settle()

    def _crossing(self) -> list[list[Key]]:
        """For each layer the boxes whose arrows lead from it to the next one, left to right."""
        found: list[dict[Key, None]] = [{} for _ in self.layout.layers]
        for path in self.layout.paths.values():
            for key in path[:-1]:
                found[self.layout.layer[key]][key] = None
        return [sorted(row, key=self.layout.x.__getitem__) for row in found]

    def _break(self, count: int) -> list[int]:
        """The column of each layer: all about equally high, broken where few arrows pass."""
        ends = list(accumulate(height + STEP_GAP for height in self.tall))
        target = ends[-1] / count
        starts = [self._cut(ends, target, number) for number in range(1, count)]
        return [sum(start <= layer for start in starts) for layer in range(len(ends))]

    def _cut(self, ends: Sequence[float], target: float, number: int) -> int:
        """The layer with which a column begins: few arrows lead to it, and it is about in place."""
        off = [abs(end / target - number) for end in ends]
        near = [layer for layer, error in enumerate(off) if error < 0.3] or [0]
        return 1 + min(near, key=lambda layer: (len(self.crossing[layer]), off[layer]))

    def _misfit(self, column: Sequence[int], aspect: float) -> float:
        width, height = self._measure(column)
        ratio = width / height / aspect
        return max(ratio, 1 / ratio)

    def _extents(self, column: Sequence[int]) -> list[tuple[float, float]]:
        """How far each column reaches to the left and to the right."""
        extents = [(float("inf"), float("-inf"))] * (max(column, default=0) + 1)
        for number, row in zip(column, self.layout.layers):
            low, high = extents[number]
            for key in row:
                half, x = self._width(key) / 2, self.layout.x[key]
                low, high = min(low, x - half), max(high, x + half)
            extents[number] = low, high
        return extents

    def _width(self, key: Key) -> float:
        return 8.0 if isinstance(key, Bend) else self.sizes[key][0]

    def _measure(self, column: Sequence[int]) -> tuple[float, float]:
        extents = self._extents(column)
        width = sum(high - low for low, high in extents) + COLUMN_GAP * (len(extents) - 1)
        heights = [0.0] * len(extents)
        for number, height in zip(column, self.tall):
            heights[number] += height + STEP_GAP
        lanes = 2 * LANES if len(extents) > 1 else 0
        return width + 2 * MARGIN, max(heights, default=0) + lanes + 2 * MARGIN

    def _settle(self) -> None:
        """Where each column and each layer begins."""
        extents = self._extents(self.column)
        self.shift: list[float] = []
        self.left: list[float] = []
        self.top: list[float] = []
        x = MARGIN
        for low, high in extents:
            self.shift.append(x - low)
            self.left.append(x)
            x += high - low + COLUMN_GAP
        y, before = 0.0, -1
        for column, height in zip(self.column, self.tall):
            if column != before:
                before, y = column, MARGIN + (LANES if len(extents) > 1 else 0)
            self.top.append(y)
            y += height + STEP_GAP

    def place(self, key: Key) -> Point:
        """The middle of a box or a bend."""
        layer = self.layout.layer[key]
        x = self.layout.x[key] + self.shift[self.column[layer]]
        return x, self.top[layer] + self.tall[layer] / 2

    def ends(self, key: Key) -> tuple[Point, Point]:
        """The middle of the upper and of the lower side of a box; a bend spans its whole layer."""
        x, y = self.place(key)
        tall = self.tall[self.layout.layer[key]] if isinstance(key, Bend) else self.sizes[key][1]
        half = tall / 2
        return (x, y - half), (x, y + half)

    def turn(self, key: Key) -> tuple[float, float, float] | None:
        """How arrows go on to the next column: down to, over at, and up to; None within one."""
        layer = self.layout.layer[key]
        if layer + 1 == len(self.column) or self.column[layer] == self.column[layer + 1]:
            return None
        others = self.crossing[layer]
        share = (others.index(key) + 1) / (len(others) + 1)
        bottom = max(
            top + tall
            for top, tall, column in zip(self.top, self.tall, self.column)
            if column == self.column[layer]
        )
        x = self.left[self.column[layer + 1]] - COLUMN_GAP * (0.2 + 0.6 * share)
        return bottom + LANES * (1.2 - share), x, MARGIN + LANES * (0.2 + 0.6 * share) - 8


def _arrow(page: Columns, path: Sequence[Key], what: str) -> str:
    """One arrow, curved between layers."""
    (x, y) = page.ends(path[0])[1]
    parts = [f"M{x:.1f} {y:.1f}"]
    for a, b in pairwise(path):
        (x1, y1), (x2, y2) = page.ends(a)[1], page.ends(b)[0]
        turn = page.turn(a)
        if turn is not None:
            down, over, up = turn
            parts.append(f"V{down:.1f}H{over:.1f}V{up:.1f}H{x2:.1f}V{y2:.1f}")
        elif abs(x1 - x2) < 0.5:
            parts.append(f"V{y2:.1f}")
        else:
            half = (y1 + y2) / 2
            parts.append(f"C{x1:.1f} {half:.1f} {x2:.1f} {half:.1f} {x2:.1f} {y2:.1f}")
        if isinstance(b, Bend):
            parts.append(f"V{page.ends(b)[1][1]:.1f}")
    x, y = page.ends(path[-1])[0]
    head = f'<path class="h" d="M{x:.1f} {y:.1f}l-4 -7h8z"/>'
    ends = f'data-from="{escape(str(path[0]))}" data-to="{escape(str(path[-1]))}"'
    return (
        f'<g class="arrow" {ends}><title>{clean(what)}</title>'
        f'<path class="a" d="{"".join(parts)}"/>{head}</g>'
    )


def _box(box: Box, place: Point, extent: tuple[float, float]) -> str:
    (x, y), (width, height) = place, extent
    round_ = height / 2 if box.kind == "end" else 6
    hover = "\n".join([box.title, *(f"{name}: {said}" for name, said in box.details)])
    top = y - height / 2 + PAD + TITLE - 3
    lines = [f'<text class="t" x="{x:.1f}" y="{top:.1f}">{clean(_shorten(box.title))}</text>']
    lines += [
        f'<text class="l" x="{x:.1f}" y="{top + LINE * n:.1f}">{clean(_shorten(line))}</text>'
        for n, line in enumerate(box.lines, 1)
    ]
    return (
        f'<g class="box" data-key="{escape(box.key)}" text-anchor="middle">'
        f"<title>{few(hover)}</title>"
        f'<rect class="{box.kind}" x="{x - width / 2:.1f}" y="{y - height / 2:.1f}" '
        f'width="{width:.1f}" height="{height:.1f}" rx="{round_:.1f}"/>{"".join(lines)}</g>'
    )


def few(text: str) -> str:
    """As much as a hover can hold."""
    return clean(text if len(text) <= 900 else text[:899] + "…")
