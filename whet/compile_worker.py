"""A process that compiles kernels for another: `python -m whet.compile_worker TARGET`."""

from __future__ import annotations

import importlib
import sys


def main() -> None:
    """Serves the target's jobs on standard input and output."""
    target, *rest = sys.argv[1:] or [""]
    if target not in ("cpu", "cuda") or rest:
        sys.exit("usage: python -m whet.compile_worker cpu|cuda")
    workers = importlib.import_module(f"whet.targets.{target}.workers")
    workers.serve(sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
