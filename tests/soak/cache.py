"""Processes that fill one cache are killed at random moments: every entry valid, no update lost.

`python -m tests.soak.cache [--kills 200] [--processes 8] [--seed N]`
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import secrets
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from whet.runtime.cache import SUFFIX, Cache

ROOT = str(Path(__file__).resolve().parents[2])
START = "import sys; from tests.soak.cache import fill; fill(*sys.argv[1:3], int(sys.argv[3]))"
SHARED = 60  # keys that all processes write; each writes others of its own besides
MOST_BYTES = 60_000


def key(name: str) -> str:
    """The key that the processes keep something under."""
    return blake2b(name.encode(), digest_size=20).hexdigest()


def content(name: str) -> bytes:
    """What is kept under a name: bytes that follow from it."""
    rng = random.Random(name)
    return rng.randbytes(rng.randrange(MOST_BYTES))


def fill(folder: str, notes: str, process: int) -> None:
    """A process's whole life: reads and writes entries, and notes each write that is done."""
    cache, rng = Cache(folder, limit=1 << 40), random.Random(process)
    done = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    number = 0
    while True:
        number += 1
        name = f"{process}-{number}" if number % 20 == 0 else f"shared-{rng.randrange(SHARED)}"
        found = cache.get(key(name))
        if found not in (None, content(name)):
            os.write(done, f"WRONG {name}\n".encode())
        if found is None or rng.random() < 0.3:
            cache.put(key(name), content(name), "cpu test test")
            os.write(done, f"{name}\n".encode())


@dataclass(frozen=True)
class Result:
    """What a storm left."""

    kept: int
    lost: list[str]
    wrong: list[str]
    leftovers: int

    def __str__(self) -> str:
        return (
            f"{self.kept} entries written and whole, {len(self.lost)} lost, {len(self.wrong)} "
            f"wrong, {self.leftovers} temporary files"
        )


def storm(folder: Path, kills: int, processes: int, seed: int) -> Result:
    """Keeps so many processes at work, kills them at random moments, and looks at what is left."""
    rng = random.Random(seed)
    cache, notes = folder / "cache", folder / "notes"
    notes.mkdir()
    numbers = itertools.count(1)
    running = [Writer.start(cache, notes, next(numbers)) for _ in range(processes)]
    try:
        for _ in range(kills):
            victim = rng.randrange(processes)
            running[victim].await_work()
            time.sleep(rng.random() * 0.05)
            running[victim].kill()
            running[victim] = Writer.start(cache, notes, next(numbers))
    finally:
        for writer in running:
            writer.kill()
    return _look(Cache(cache, limit=1 << 40), notes)


@dataclass(frozen=True)
class Writer:
    """A process that fills the cache, and the file in which it notes what it wrote."""

    process: subprocess.Popen[bytes]
    notes: Path

    @classmethod
    def start(cls, cache: Path, notes: Path, number: int) -> Writer:
        arguments = [str(cache), str(notes / str(number)), str(number)]
        command = [sys.executable, "-c", START, *arguments]
        return cls(subprocess.Popen(command, cwd=ROOT), notes / str(number))

    def await_work(self) -> None:
        """Waits for its first entry: a kill before that tells nothing."""
        while not (self.notes.exists() and self.notes.stat().st_size):
            assert self.process.poll() is None, "a process ended by itself"
            time.sleep(0.002)

    def kill(self) -> None:
        assert self.process.poll() is None, "a process ended by itself"
        self.process.kill()
        self.process.wait()


def _look(cache: Cache, notes: Path) -> Result:
    assert cache.folder is not None
    written = [line for path in notes.iterdir() for line in path.read_text().splitlines()]
    wrong = [line for line in written if line.startswith("WRONG")]
    names = set(written) - set(wrong)
    lost = [name for name in names if cache.get(key(name)) is None]
    wrong += [name for name in names if cache.get(key(name)) not in (None, content(name))]
    files = os.listdir(cache.folder)
    stems = {name.removesuffix(SUFFIX) for name in files if name.endswith(SUFFIX)}
    wrong += [stem for stem in stems if cache.get(stem) is None]  # whole, noted or not
    return Result(len(names) - len(lost), lost, wrong, len(files) - len(stems))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = storm(Path(folder), options.kills, options.processes, options.seed)
    print(f"seed {options.seed}, {options.kills} kills of {options.processes} processes: {result}")
    return int(bool(result.lost or result.wrong))


if __name__ == "__main__":
    sys.exit(main())
