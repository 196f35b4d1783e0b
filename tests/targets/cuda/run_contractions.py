"""Runs products and convolutions through Triton's interpreter: python -m
tests.targets.cuda.run_contractions [--parts N | --span N | --persistent] [words]; sums are cut into
that many parts, with 0 into equal shares of all tiles for 7 multiprocessors, and with 1, in tiles
of 48 columns; threads of depthwise convolutions have that many neighbours; or blocks stay, and read
through descriptors."""

from __future__ import annotations

import os
import sys
import traceback

os.environ["TRITON_INTERPRET"] = "1"


def main(words: list[str]) -> int:
    """Prints each one that fails; returns how many."""
    from tests.targets.cuda.contractions import BOUNDS, described, error_of, small
    from tests.targets.cuda.interpreter import Interpreted
    from whet.targets.cuda.templates import depthwise
    from whet.targets.cuda.templates.persistent import Persistent
    from whet.targets.cuda.templates.tiling import Tile

    device, problems, failed, passed = Interpreted(), small(), 0, 0
    if words[:1] == ["--parts"]:
        parts = int(words[1])
        device = Interpreted("sm90x7", Tile(32, 48 if parts == 1 else 32, 16, parts, 4, 3))
        words = words[2:]
    elif words[:1] == ["--span"]:
        device, words = Interpreted("sm90", depthwise.Tile(2, 64, int(words[1]), 1)), words[2:]
    elif words[:1] == ["--persistent"]:
        device, problems = Interpreted("sm90x7", Persistent(64, 192, 64, 1, 4, 3)), described()
        words = words[1:]
    for p in problems:
        if not all(word in p.name for word in words):
            continue
        try:
            (got,), (want,) = device.run(p.graph, list(p.arrays)), p.wanted()
            error = error_of(got, want)
            kernels = [s.name for s in device.plan.steps]
            good = error <= BOUNDS[p.graph.outputs[0].dtype] and got.shape == want.shape
            passed, failed = passed + good, failed + (not good)
            print(f"{'ok  ' if good else 'BAD '} {p.name}: {error:.1e} {kernels}", flush=True)
        except Exception as problem:
            failed += 1
            print(f"BAD  {p.name}: {type(problem).__name__}: {str(problem)[:300]}", flush=True)
            if os.environ.get("VERBOSE"):
                print("\n".join(traceback.format_exc().strip().splitlines()[-15:]))
    print(f"{passed} passed, {failed} failed")
    return failed


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:])))
