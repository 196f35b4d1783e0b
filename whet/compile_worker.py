"""A process that compiles kernels for another: `python -m whet.compile_worker TARGET [idle]`."""

from __future__ import annotations

import importlib
import sys

from whet.targets.cpu import host


def main() -> None:
    """Serves the target's jobs on standard input and output."""
    target, *how = sys.argv[1:] or [""]
    if target not in ("cpu", "cuda") or how not in ([], ["idle"]):
        sys.exit("usage: python -m whet.compile_worker cpu|cuda [idle]")
    if how:
        host.yield_to_others()
    workers = importlib.import_module(f"whet.targets.{target}.workers")
    workers.serve(sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
