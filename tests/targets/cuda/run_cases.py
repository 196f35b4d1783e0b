"""Runs rows of the case table through Triton's interpreter: python -m tests.targets.cuda.run_cases
[words that a case's name must hold]."""

from __future__ import annotations

import os
import sys
import traceback

os.environ["TRITON_INTERPRET"] = "1"


def main(words: list[str]) -> int:
    """Prints each row that fails; returns how many."""
    from tests.ops.cases import CASES
    from tests.ops.draw import assert_close
    from tests.ops.test_ops import by_reference
    from tests.targets.cuda.interpreter import Interpreted

    device = Interpreted()
    failed = passed = hosted = 0
    seed = int(os.environ.get("SEED", "7"))
    for case in CASES:
        if not all(word in case.name for word in words):
            continue
        graph, arrays = case.graph(), case.arrays(seed)
        try:
            got = device.run(graph, [a.copy() for a in arrays])
            for a, b in zip(got, by_reference(graph, arrays), strict=True):
                assert_close(a, b, case)
            passed += 1
            hosted += any(step.is_host for step in device.plan.steps)
        except Exception as error:
            failed += 1
            lines = traceback.format_exc().strip().splitlines()
            print(f"{case.name}: {type(error).__name__}: {str(error).strip()[:300]}", flush=True)
            if os.environ.get("VERBOSE"):
                print("\n".join(lines[-25:]))
    print(f"{passed} passed ({hosted} with a host step), {failed} failed")
    return failed


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:])))
