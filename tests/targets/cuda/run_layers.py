"""Runs recurrent layers, suppression and sorting through Triton's interpreter: python -m
tests.targets.cuda.run_layers [--seed N] [words]."""

from __future__ import annotations

import os
import secrets
import sys
import traceback

os.environ["TRITON_INTERPRET"] = "1"


def main(words: list[str]) -> int:
    """Prints each one that fails; returns how many."""
    import numpy as np

    from tests.targets.cuda.interpreter import Interpreted
    from tests.targets.cuda.layers import orders, recurrents, suppressions

    seed = secrets.randbits(32)
    if words[:1] == ["--seed"]:
        seed, words = int(words[1]), words[2:]
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    device, failed, passed = Interpreted("sm90x2"), 0, 0
    for layer in (*recurrents(rng), *suppressions(rng), *orders(rng)):
        if not all(word in layer.name for word in words):
            continue
        try:
            good = layer.is_right(device.run(layer.graph, list(layer.arrays)))
            good = good and not any(step.is_host for step in device.plan.steps)
            print(f"{'ok  ' if good else 'BAD '} {layer.name}", flush=True)
        except Exception as problem:
            good = False
            print(f"BAD  {layer.name}: {type(problem).__name__}: {str(problem)[:300]}", flush=True)
            if os.environ.get("VERBOSE"):
                print("\n".join(traceback.format_exc().strip().splitlines()[-15:]))
        passed, failed = passed + good, failed + (not good)
    print(f"{passed} passed, {failed} failed")
    return failed


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:])))
