"""Sessions that start at once from one empty cache are killed while they compile and run.

`python -m tests.soak.starts [--kills 50] [--processes 4] [--seed N]`
"""

from __future__ import annotations

import argparse
import os
import random
import secrets
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import whet
from tests.runtime.models import attention, convolutions
from whet.runtime import entries
from whet.runtime.cache import SUFFIX

ROOT = str(Path(__file__).resolve().parents[2])

START = """
import sys, numpy as np, whet
session = whet.load(sys.argv[1]).session(threads=2)
(name, kind), = session.inputs.items()
x = np.linspace(-1, 1, int(np.prod(kind.shape)), dtype=np.float32).reshape(kind.shape)
print(session.run({name: x})["y"].tobytes().hex())
"""


def start(engine: Path, cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", START, str(engine)],
        env={**os.environ, "WHET_CACHE_DIR": str(cache), "PYTHONPATH": ROOT},
        stdout=subprocess.PIPE,
        text=True,
    )


def storm(folder: Path, kills: int, processes: int, seed: int) -> int:
    """Kills starts at random moments; returns how many entries they left, all of them whole.

    Raises AssertionError where an entry is not whole, or a start gives other numbers than before.
    """
    rng, cache = random.Random(seed), folder / "cache"
    engines = [folder / "convolutions.whet", folder / "attention.whet"]
    for path, model in zip(engines, (convolutions(), attention())):
        whet.build(model).save(path)
    for _ in range(-(-kills // processes)):
        if rng.random() < 0.3:
            for path in cache.glob("*" + SUFFIX):
                path.unlink()  # or there would soon be nothing left to write
        running = [start(rng.choice(engines), cache) for _ in range(processes)]
        for process in running:
            time.sleep(rng.random())
            process.kill()
            process.communicate()
        _check(cache)
    results = [{start(engine, cache).communicate()[0] for _ in range(2)} for engine in engines]
    assert all(len(found) == 1 and "" not in found for found in results), "the results differ"
    return _check(cache)


def _check(cache: Path) -> int:
    found = list(cache.glob("*" + SUFFIX))
    for path in found:
        entry = entries.unpack(path.read_bytes())
        assert entry is not None and entry.key == path.stem, f"{path} is not whole"
    return len(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kept = storm(Path(folder), options.kills, options.processes, options.seed)
    print(f"seed {options.seed}, {options.kills} kills: {kept} entries, all whole")


if __name__ == "__main__":
    main()
