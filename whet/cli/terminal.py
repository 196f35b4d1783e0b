"""What commands print: results on standard output, notes and progress on standard error."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from whet.progress import ProgressMonitor, monitored

if TYPE_CHECKING:
    from rich.console import Console

PATIENCE = 1.0
"""Seconds after which a progress bar shows that something is going on."""

NO_TERMINAL = 100_000
"""The width where nobody looks: nothing is wrapped or cut."""


def console(file: TextIO) -> Console:
    """A console that writes text as it is: no markup, no colours for numbers, no wrapping."""
    from rich.console import Console

    width = None if file.isatty() else NO_TERMINAL
    return Console(file=file, width=width, markup=False, highlight=False, emoji=False)


def output() -> Console:
    """Where results go."""
    return console(sys.stdout)


def messages() -> Console:
    """Where notes, warnings and errors go."""
    return console(sys.stderr)


def say(text: str = "", style: str | None = None) -> None:
    """A line of a command's result."""
    output().print(text, style=style, soft_wrap=True)


def note(text: str) -> None:
    """A line about what is being done, which is no part of the result."""
    messages().print(text, style="dim", soft_wrap=True)


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]], left: Sequence[int] = (0,)) -> None:
    """Rows under heads; columns hold numbers, to the right, but for those in `left`, of which the
    first and the last may take several lines."""
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for number, head in enumerate(heads):
        side: Any = "left" if number in left else "right"
        may_fold = number in (left[0], left[-1])
        shown.add_column(head, justify=side, no_wrap=not may_fold, overflow="fold")
    for row in rows:
        shown.add_row(*(str(cell) for cell in row))
    _print(shown)


def facts(rows: Sequence[tuple[str, Any]]) -> None:
    """Names and what is to be said of each, one to a line."""
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    shown.add_column(no_wrap=True, style="bold")
    shown.add_column(overflow="fold")
    for name, value in rows:
        shown.add_row(name, str(value))
    _print(shown)


def _print(shown: Any) -> None:
    """Prints something wide without the spaces that fill its lines up."""
    console = output()
    with console.capture() as caught:
        console.print(shown)
    for line in caught.get().splitlines():
        print(line.rstrip())


class Work(ProgressMonitor):
    """Something that takes its time; `step`, or the phases that it goes through, say how far it
    is."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._bar: Any = None
        self._task: Any = None
        self._done, self._total = 0.0, 0.0
        self._lock = threading.Lock()
        self._phases: list[tuple[str, int]] = []

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        self._phases.append((phase_name, num_steps))
        self.step(0, num_steps, phase_name)

    def step_complete(self, phase_name: str, step: int) -> bool:
        _, count = self._phases[-1]
        many = f" {step + 1}/{count}" if count > 1 else ""
        self.step(step + 1, count, f"{phase_name}{many}")
        return True

    def phase_finish(self, phase_name: str) -> None:
        self._phases.pop()

    def step(self, done: float, total: float, title: str | None = None) -> None:
        """Shows how much is done, and under which title."""
        with self._lock:
            self._done, self._total, self.title = done, total, title or self.title
            if self._bar is not None:
                self._update()

    def show(self) -> None:
        """Opens the bar."""
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
        with self._lock:
            self._bar = Progress(*columns, console=messages(), transient=True)
            self._task = self._bar.add_task(self.title, total=None)
            self._update()
            self._bar.start()

    def close(self) -> None:
        with self._lock:
            if self._bar is not None:
                self._bar.stop()
                self._bar = None

    def _update(self) -> None:
        self._bar.update(
            self._task,
            description=self.title,
            total=self._total or None,
            completed=self._done,
        )


@contextmanager
def working(title: str) -> Iterator[Work]:
    """A progress bar for the block, should it last longer than a second; only on a terminal.

    What the block builds or compiles tells the bar its phases.
    """
    work = Work(title)
    timer = threading.Timer(PATIENCE, work.show)
    timer.daemon = True
    if sys.stderr.isatty():
        timer.start()
    try:
        with monitored(work):
            yield work
    finally:
        timer.cancel()
        work.close()


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    value, unit = seconds, "s"
    if seconds < 1:
        value, unit = (seconds * 1e6, "µs") if seconds < 1e-3 else (seconds * 1e3, "ms")
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    if unit == "µs":
        digits = int(0 < value < 9.95)
    return f"{value:.{digits}f} {unit}"


def count(number: int, thing: str) -> str:
    """How many things there are: no kernels, 1 kernel, 2 kernels."""
    return f"{number or 'no'} {thing}{'' if number == 1 else 's'}"


def amount(count: float) -> str:
    """A number of things in the unit that suits it; a k is 1,000."""
    for unit in ("", "k", "M", "G", "T"):
        if count < 1000 or unit == "T":
            break
        count /= 1000
    return f"{count:.0f}" if not unit else f"{count:.3g} {unit}"


def size(count: float) -> str:
    """Bytes in the unit that suits them; a K is 1,024."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
