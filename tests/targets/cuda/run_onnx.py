"""Runs ONNX's own node cases through Triton's interpreter: python -m tests.targets.cuda.run_onnx
PATTERN."""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"


def main(pattern: str) -> int:
    """Prints each case that is not right; returns how many."""
    from benchmarks.conformance import as_value, collect, judge

    passed = failed = 0
    for case in collect(pattern):
        for inputs, expected in case.data_sets:
            try:
                wrong = judge(case, run(case.model, list(map(as_value, inputs))), expected)
            except Exception as error:
                wrong = f"{type(error).__name__}: {error}"
            passed, failed = passed + (not wrong), failed + bool(wrong)
            if wrong:
                print(f"{case.name}: {wrong[:300]}", flush=True)
    print(f"{passed} passed, {failed} failed")
    return failed


def run(model: Any, inputs: list[Any]) -> list[Any]:
    """The outputs, every kernel interpreted."""
    import whet
    from tests.targets.cuda.interpreter import Interpreted

    graph = whet.build(model).graph
    given = dict(zip([i.name for i in model.graph.input], inputs))
    return Interpreted().run(graph, [given[i.op.name] for i in graph.inputs])  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1])))
