"""Kernels that are told sizes on a GPU, at random sizes, and those that take over for sizes that
come back, for a machine that has one: python -m tests.targets.cuda.sizes [--seed N] [words]."""

from __future__ import annotations

import secrets
import sys
import time
from typing import Any

import numpy as np

from tests.targets.cuda.contractions import BOUNDS, error_of
from tests.targets.cuda.ranges import problems
from whet.engine.weights import ImportedWeights
from whet.ir.evaluate import evaluate
from whet.ir.graph import Graph
from whet.runtime.engine import Engine
from whet.runtime.session import Session

PATIENCE = 60.0
"""Seconds to wait for kernels from the background."""


def error_at(session: Session, graph: Graph, arrays: list[np.ndarray], sizes: Any) -> float:
    """How far a run is from the references."""
    got = session.run({f"x{n}": array for n, array in enumerate(arrays)})["y"]
    known = graph.bind(sizes)
    (want,) = evaluate(known, dict(zip(known.inputs, arrays)))
    return error_of(np.asarray(got), want)


def main(words: list[str]) -> tuple[int, int]:
    """Prints the largest error of each case, for all sizes and for its own; returns how many are
    right and wrong."""
    seed = secrets.randbits(32)
    if words[:1] == ["--seed"]:
        seed, words = int(words[1]), words[2:]
    print(f"seed {seed}")
    sessions: dict[str, Session] = {}
    failed = passed = 0
    for name, graph, arrays, sizes in problems(np.random.default_rng(seed)):
        if not all(word in name for word in words):
            continue
        if name not in sessions:
            engine = Engine(graph, ImportedWeights({}))
            sessions[name] = engine.session(device="cuda", cache=False)
        session = sessions[name]
        errors = [error_at(session, graph, arrays, sizes) for _ in range(2)]
        settle(session)
        errors.append(error_at(session, graph, arrays, sizes))
        good = max(errors) <= BOUNDS[graph.outputs[0].dtype] and len(session.plans) == 1
        said = ", ".join(f"{error:.1e}" for error in errors)
        print(f"{'ok  ' if good else 'BAD '} {name} {sizes}: {said}", flush=True)
        passed, failed = passed + good, failed + (not good)
    print(f"{passed} passed, {failed} failed")
    return passed, failed


def settle(session: Session) -> None:
    """Waits until nothing is made in the background any more."""
    deadline, device = time.monotonic() + PATIENCE, session._runner.device
    while device.background.is_busy and time.monotonic() < deadline:  # type: ignore[attr-defined]
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:])[1] > 0)
