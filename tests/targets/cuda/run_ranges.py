"""Runs kernels that are told sizes through Triton's interpreter, each at several sets of sizes:
python -m tests.targets.cuda.run_ranges [--seed N] [words]."""

from __future__ import annotations

import os
import secrets
import sys
import traceback

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np

from tests.targets.cuda.contractions import BOUNDS, error_of
from tests.targets.cuda.interpreter import Interpreted
from tests.targets.cuda.ranges import problems
from whet.ir.evaluate import evaluate
from whet.ir.graph import Graph


def is_right(device: Interpreted, graph: Graph, arrays: list[np.ndarray], sizes: dict) -> bool:
    """Whether results are close to the references, and all of it is kernels."""
    got = device.run(graph, arrays, sizes)
    want = evaluate(graph.bind(sizes), dict(zip(graph.bind(sizes).inputs, arrays)))
    assert not any(step.is_host for step in device.plan.steps)
    bound = BOUNDS[graph.outputs[0].dtype]
    return all(error_of(a, b) <= bound for a, b in zip(got, want, strict=True))


def main(words: list[str]) -> int:
    """Prints each one that fails; returns how many."""
    seed = secrets.randbits(32)
    if words[:1] == ["--seed"]:
        seed, words = int(words[1]), words[2:]
    print(f"seed {seed}")
    device, failed, passed = Interpreted("sm90x4"), 0, 0
    for name, graph, arrays, sizes in problems(np.random.default_rng(seed)):
        if not all(word in name for word in words):
            continue
        try:
            good = is_right(device, graph, arrays, sizes)
            print(f"{'ok  ' if good else 'BAD '} {name} {sizes}", flush=True)
        except Exception as problem:
            good = False
            said = f"{type(problem).__name__}: {str(problem)[:300]}"
            print(f"BAD  {name} {sizes}: {said}", flush=True)
            if os.environ.get("VERBOSE"):
                print("\n".join(traceback.format_exc().strip().splitlines()[-15:]))
        passed, failed = passed + good, failed + (not good)
    print(f"{passed} passed, {failed} failed")
    return failed


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:])))
