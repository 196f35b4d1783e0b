"""Runners in processes of their own, of which only the one that is asked is awake."""

import contextlib
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class RunnerError(Exception):
    """A runner reported an error, died or did not answer in time."""


def environment(whet: Path = ROOT) -> dict[str, str]:
    """The environment of a child that takes `whet` from a folder and the harness from here, and
    keeps its bytecode, as pip does where it installs whet or a peer."""
    kept = {name: x for name, x in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": os.pathsep.join([str(whet), str(ROOT)])}


class Process:
    """A `benchmarks.worker`; it is stopped by the system whenever it has nothing to answer."""

    def __init__(self, name: str, whet: Path = ROOT, timeout: float = 300):
        self.name, self.timeout = name, timeout
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115, it lives as long as the child
        self.child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment(whet),
            cwd=whet,
        )

    def ask(self, method: str, *arguments: Any) -> Any:
        """What the worker's method returns; raises RunnerError."""
        assert self.child.stdin is not None
        try:
            self.child.send_signal(signal.SIGCONT)
            pickle.dump((method, arguments), self.child.stdin)
            self.child.stdin.flush()
            succeeded, result = self.answer()
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise RunnerError(f"{self.name} died: {self.last_words()}") from error
        self.child.send_signal(signal.SIGSTOP)
        if not succeeded:
            raise RunnerError(f"{self.name}: {result}")
        return result

    def answer(self) -> Any:
        assert self.child.stdout is not None
        ready, _, _ = select.select([self.child.stdout], [], [], self.timeout)
        if not ready:
            raise RunnerError(f"{self.name} gave no answer within {self.timeout:.0f} s")
        return pickle.load(self.child.stdout)

    def last_words(self) -> str:
        self.errors.seek(0)
        return self.errors.read()[-600:].decode(errors="replace").strip() or "without a word"

    def close(self) -> None:
        self.child.kill()
        self.child.communicate()
        self.errors.close()


@contextlib.contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """A folder with the package `whet` as it was at a revision."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(
            ["git", "archive", revision, "whet"], cwd=ROOT, capture_output=True, check=True
        ).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        yield Path(folder)
