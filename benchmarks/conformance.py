"""Run ONNX's own node cases through a backend and count what is right.

    python -m benchmarks.conformance [--backend whet] [--only PATTERN] [--why] [--operators]

Right: every output has the expected type, shape and values (the case's own tolerances).
Wrong: it ran, and an output differs. Refused: the backend says that it cannot. Failed: any other
exception, a crash or a hang. "Without reference" counts the right ones whose plan has no reference
kernel.
"""

import argparse
import json
import re
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.backends import BACKENDS
from benchmarks.isolation import run_isolated

VERDICTS = ("right", "wrong", "refused", "failed")


@dataclass(frozen=True)
class Result:
    """What became of one case; `references` names the nodes that ran a reference kernel."""

    case: str
    operator: str
    verdict: str
    reason: str = ""
    references: tuple[str, ...] = ()

    @property
    def fast(self) -> bool:
        return self.verdict == "right" and not self.references


def collect(pattern: str = "") -> list[Any]:
    """ONNX's node cases whose name matches a regular expression."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cases overflow and divide by zero on purpose
        from onnx.backend.test.case.node import collect_testcases

        cases = collect_testcases()
    return [case for case in cases if re.search(pattern, case.name)]


def operators(cases: Sequence[Any]) -> dict[str, str]:
    """The operator that each case is about; an expanded case is about the one it expands."""
    direct = {c.name: c.model.graph.node[-1].op_type for c in cases}
    return {name: direct.get(name.partition("_expanded")[0], op) for name, op in direct.items()}


def as_value(x: Any) -> Any:
    """A case's tensor as an array; sequences and absent optionals as they are."""
    if isinstance(x, onnx.TensorProto):
        return numpy_helper.to_array(x)
    if isinstance(x, list):
        return [as_value(item) for item in x]
    return x if x is None else np.asarray(x)


def difference(actual: Any, expected: Any, rtol: float, atol: float) -> str | None:
    """How an output differs from what is expected, None where it does not."""
    if expected is None or actual is None:
        return None if actual is expected else f"{actual} for {expected}"
    if isinstance(expected, list):
        if not isinstance(actual, list | tuple) or len(actual) != len(expected):
            return "another sequence"
        differences = (difference(a, e, rtol, atol) for a, e in zip(actual, expected))
        return next((d for d in differences if d), None)
    actual = np.asarray(actual)
    if actual.dtype != expected.dtype:
        return f"dtype {actual.dtype} for {expected.dtype}"
    if actual.shape != expected.shape:
        return f"shape {actual.shape} for {expected.shape}"
    if expected.dtype.kind in "OUSbiu":
        return None if np.array_equal(actual, expected) else "other values"
    if actual.dtype.name == "bfloat16":
        rtol = max(rtol, 2**-6)  # as ONNX's own runner has it: two units in the last place
    a, e = actual.astype(wide(actual.dtype)), expected.astype(wide(expected.dtype))
    return None if np.allclose(a, e, rtol, atol, equal_nan=True) else "other values"


def wide(dtype: np.dtype[Any]) -> type:
    """A type that NumPy compares; the small types of ml_dtypes are exact in it."""
    return np.complex128 if dtype.kind == "c" else np.float64


def judge(case: Any, outputs: Sequence[Any], expected: Sequence[Any]) -> str | None:
    if len(outputs) != len(expected):
        return f"{len(outputs)} outputs for {len(expected)}"
    pairs = zip(outputs, map(as_value, expected))
    differences = (difference(a, e, case.rtol, case.atol) for a, e in pairs)
    return next((d for d in differences if d), None)


def open_cases(
    backend_name: str, names: dict[str, str], cache: Path | None = None
) -> Callable[[Any], Result]:
    """Load a backend, in the worker, and return what runs a case on it."""
    warnings.simplefilter("ignore")
    backend = BACKENDS[backend_name](cache)

    def run(case: Any) -> Result:
        operator = names[case.name]
        try:
            loaded = backend.open(case.model)
            for inputs, expected in case.data_sets:
                feeds = {v.name: as_value(x) for v, x in zip(case.model.graph.input, inputs)}
                outputs = list(loaded.run(feeds).values())
                references = tuple(loaded.references())
                reason = judge(case, outputs, expected)
                if reason:
                    return Result(case.name, operator, "wrong", reason, references)
        except backend.refusals as error:
            return Result(case.name, operator, "refused", describe(error))
        except Exception as error:
            return Result(case.name, operator, "failed", f"{describe(error)} ({place(error)})")
        return Result(case.name, operator, "right", "", references)

    return run


def describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:2000]


def place(error: Exception) -> str:
    """The file and line that raised an exception."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


def run_cases(
    cases: Sequence[Any],
    backend: str,
    names: dict[str, str],
    cache: Path | None = None,
    **options: Any,
) -> Iterator[Result]:
    """The results in the order in which the cases end."""

    def open_tasks() -> Callable[[int], Result]:
        run = open_cases(backend, names, cache)
        return lambda index: run(cases[index])

    for index, result in run_isolated(range(len(cases)), open_tasks, **options):
        if isinstance(result, str):
            name = cases[index].name
            result = Result(name, names[name], "failed", result)
        yield result


def summary(results: Sequence[Result]) -> str:
    count = Counter(result.verdict for result in results)
    verdicts = ", ".join(f"{count[verdict]} {verdict}" for verdict in VERDICTS)
    fast = sum(result.fast for result in results)
    return f"{len(results)} cases: {verdicts}; {fast} right without reference kernels"


def reasons(results: Sequence[Result]) -> Iterator[str]:
    """What is not right, grouped by its reason with numbers and quoted names left out."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        if result.verdict != "right":
            alike = re.sub(r'"[^"]*"|\'[^\']*\'|\d+', "*", result.reason.split("\n")[0])[:110]
            groups.setdefault((result.verdict, alike), []).append(result)
    for (verdict, _), group in sorted(groups.items(), key=lambda item: -len(item[1])):
        yield f"{len(group):5} {verdict:8} {group[0].reason.splitlines()[0][:150]}"
        shown = ", ".join(result.case.removeprefix("test_") for result in group[:6])
        yield f"                 {shown}{', ...' if len(group) > 6 else ''}"


def table(results: Sequence[Result]) -> Iterator[str]:
    """A line for each operator: its cases, by verdict, and those without reference kernels."""
    yield f"{'operator':28} {'cases':>6} " + " ".join(f"{v:>8}" for v in VERDICTS) + "     fast"
    for operator in sorted({result.operator for result in results}):
        mine = [result for result in results if result.operator == operator]
        count = Counter(result.verdict for result in mine)
        cells = " ".join(f"{count[verdict] or '.':>8}" for verdict in VERDICTS)
        yield f"{operator:28} {len(mine):6} {cells} {sum(result.fast for result in mine):8}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", default="whet", choices=BACKENDS)
    parser.add_argument("--only", default="", metavar="PATTERN", help="cases with such a name")
    parser.add_argument("--why", action="store_true", help="group what is not right by its reason")
    parser.add_argument("--operators", action="store_true", help="a line for each operator")
    parser.add_argument("--references", action="store_true", help="operators left to a reference")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds for one case")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="kernels made before")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)

    cases = collect(args.only)
    if not cases:
        sys.exit(f"no case has a name that matches {args.only!r}")
    names = operators(cases)
    options = {"workers": args.workers, "seconds": args.timeout}
    running = run_cases(cases, args.backend, names, args.cache, **options)
    results = sorted(running, key=lambda result: result.case)

    if args.only and len(results) <= 20:
        print(*(f"{r.case}: {r.verdict} {r.reason}" for r in results), sep="\n")
    lines: list[str] = []
    if args.operators:
        lines += table(results)
    if args.why:
        lines += reasons(results)
    if args.references:
        lines += sorted({r.operator for r in results if r.references})
    print(*lines, summary(results), sep="\n")
    if args.json:
        args.json.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")


if __name__ == "__main__":
    main()
