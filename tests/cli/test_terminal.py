"""Progress only for whom it is, and units that suit."""

import io
import sys
import time

import pytest

from whet.cli import terminal


class Tty(io.StringIO):
    def isatty(self):
        return True


def test_progress_shows_on_a_terminal_after_a_while(monkeypatch):
    screen = Tty()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(terminal, "PATIENCE", 0.05)
    with terminal.working("compiling") as work:
        work.step(1, 4)
        time.sleep(0.3)
        work.step(2, 4, "compiling 2/4")
        time.sleep(0.3)
    assert "compiling 2/4" in screen.getvalue()


def test_short_work_and_files_see_none(monkeypatch):
    for screen in (Tty(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", screen)
        with terminal.working("compiling") as work:
            work.step(1, 4)
        assert screen.getvalue() == ""


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0, "0 µs"),
        (0.4e-6, "0.4 µs"),
        (41.2e-6, "41 µs"),
        (1.234e-3, "1.23 ms"),
        (36e-3, "36.0 ms"),
        (0.5, "500 ms"),
    ],
)
def test_durations(seconds, text):
    assert terminal.duration(seconds) == text


def test_sizes():
    assert [terminal.size(n) for n in (0, 1023, 1536, 5 << 20, 3 << 40)] == [
        "0 bytes", "1023 bytes", "1.5 KiB", "5.0 MiB", "3072.0 GiB",
    ]  # fmt: skip


def test_one_of_a_thing_is_not_several():
    said = [terminal.count(n, "kernel") for n in (0, 1, 2)]
    assert said == ["no kernels", "1 kernel", "2 kernels"]


def test_tables_are_plain_text_in_files(capsys):
    terminal.table(("name", "count"), [("[red]x", 3), ("y" * 300, 40)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["[red]x", "3"] and lines[2].startswith("y" * 300)
    assert all(line == line.rstrip() for line in lines)
