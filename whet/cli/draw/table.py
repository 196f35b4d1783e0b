"""The kernels as a table of a page, which sorts by whatever column is clicked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from whet.cli.draw.diagram import Diagram, tactic_text
from whet.cli.draw.svg import clean
from whet.cli.terminal import amount, duration, size
from whet.runtime.inspect import Inspection, Kernel


@dataclass(frozen=True)
class Cell:
    """What is shown, and the number that a column of numbers sorts by."""

    text: str
    number: float | None = None


def kernels_table(found: Inspection) -> str:
    """Every kernel with its work, its tactic, and how near its limit it is."""
    timed = found.seconds is not None
    heads = ["", "does", "nodes of the model", "gives", "reads", "writes", "operations", "tactic"]
    heads += ["time", "of all", "of the limit"] if timed else []
    whole = found.seconds or 1.0
    rows = [(f"step {k.number}", _cells(k, whole if timed else None)) for k in found.kernels]
    return _table(heads, rows)


def _cells(kernel: Kernel, whole: float | None) -> list[Cell]:
    cells = [
        Cell(str(kernel.number), kernel.number),
        Cell(kernel.title),
        Cell(" + ".join(kernel.nodes) or kernel.operator),
        Cell(", ".join(buffer.type for buffer in kernel.writes)),
        Cell(size(kernel.read), kernel.read),
        Cell(size(kernel.written), kernel.written),
        Cell(amount(kernel.operations), kernel.operations),
        Cell(tactic_text(kernel.tactic)),
    ]
    if whole is not None:
        seconds = kernel.seconds or 0.0
        cells += [
            Cell(duration(seconds), seconds),
            Cell(f"{100 * seconds / whole:.1f} %", seconds),
            Cell(limit_text(kernel), -1.0 if kernel.reached is None else kernel.reached),
        ]
    return cells


def limit_text(kernel: Kernel) -> str:
    """How near a kernel is to its limit, and which one that is."""
    if kernel.reached is None:
        return ""
    return f"{100 * kernel.reached:.0f} % {kernel.bound}"


def operators_table(diagram: Diagram) -> str:
    """The operators of a graph."""
    boxes = [box for box in diagram.boxes.values() if box.kind != "end"]
    rows = [
        (box.key, [Cell(str(number), number), *(Cell(t) for t in (box.title, *box.lines))])
        for number, box in enumerate(boxes, 1)
    ]
    return _table(["", "does", "nodes of the model", "gives"], rows)


def _table(heads: Sequence[str], rows: Sequence[tuple[str, Sequence[Cell]]]) -> str:
    head = "".join(f"<th>{clean(text)}</th>" for text in heads)
    body = "".join(
        f'<tr data-key="{clean(key)}">{"".join(map(_cell, cells))}</tr>' for key, cells in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(cell: Cell) -> str:
    if cell.number is None:
        return f"<td>{clean(cell.text)}</td>"
    return f'<td class="n" data-number="{cell.number:.9g}">{clean(cell.text)}</td>'
