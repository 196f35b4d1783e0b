"""ONNX's own node cases, through the reader and the reference, of the families listed here."""

from __future__ import annotations

import re
from typing import Any

import pytest

from benchmarks.conformance import as_value, collect, judge, operators
from whet.frontends.onnx import from_onnx
from whet.frontends.onnx.registry import READERS
from whet.ir.evaluate import evaluate

FAMILIES = {
    "blocks",
    "elementwise",
    "forest",
    "gather",
    "generate",
    "ml",
    "movement",
    "quantize",
    "random",
    "reduce",
    "svm",
    "text",
}

GAPS = {
    r"test_bernoulli": "the expected outputs are one draw of random numbers",
}
"""Cases that cannot come out right, by pattern, each with the reason."""

READ_HERE = {
    operator
    for (_, operator), meanings in READERS.items()
    if any(m.read.__module__.rpartition(".")[2] in FAMILIES for m in meanings.values())
}
ALL = collect()
ABOUT = operators(ALL)
CASES = [case for case in ALL if ABOUT[case.name] in READ_HERE]


def gap(case: str) -> str | None:
    """Why a case cannot come out right; None where it must."""
    return next((why for pattern, why in GAPS.items() if re.match(pattern, case)), None)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Any) -> None:
    imported = from_onnx(case.model)
    for inputs, expected in case.data_sets:
        given = dict(zip((i.name for i in case.model.graph.input), map(as_value, inputs)))
        feed = {value: given[value.op.name] for value in imported.graph.inputs}  # type: ignore[attr-defined]
        outputs = evaluate(imported.graph, feed, lambda name: imported.weights[name].read())
        wrong = judge(case, outputs, expected)
        assert wrong is None or gap(case.name)


def test_gaps_are_gaps() -> None:
    """Every pattern still names a case: the list shrinks as cases come out right."""
    assert all(any(re.match(pattern, case.name) for case in CASES) for pattern in GAPS)
