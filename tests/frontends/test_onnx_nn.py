"""ONNX's own node cases of neural-network operators, through the reader and the reference."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from typing import Any

import onnx
import pytest

from benchmarks.conformance import as_value, collect, judge, operators
from whet.frontends.onnx import from_onnx
from whet.frontends.onnx.registry import READERS, meaning
from whet.ir.evaluate import evaluate

FAMILIES = {
    "attention",
    "convolution",
    "einsum",
    "loss",
    "matmul",
    "normalize",
    "pooling",
    "recurrent",
    "resize",
    "sampling",
    "signal",
}

GAPS = {
    r"test_resize_downsample_scales_(linear|cubic)_align_corners$": (
        "the expected outputs take a fraction for the new length; PyTorch, ONNX Runtime and the "
        "text of the specification take the length that the output has"
    ),
    r"test_dft_inverse(_opset19)?$": "where 0 is exact, the expected outputs are rounding noise",
}
"""Cases that cannot come out right, by pattern, each with the reason."""

READ_HERE = {
    operator
    for (domain, operator), meanings in READERS.items()
    if domain != "com.microsoft"
    and any(m.read.__module__.rpartition(".")[2] in FAMILIES for m in meanings.values())
}
ALL = collect()
ABOUT = operators(ALL)
CASES = [case for case in ALL if ABOUT[case.name] in READ_HERE and "_expanded" not in case.name]


def tolerant(case: Any) -> Any:
    """The case, with what ONNX's own runner allows bfloat16: two units in the last place."""
    arrays = [as_value(e) for _, expected in case.data_sets for e in expected]
    coarse = any(getattr(a, "dtype", None) == "bfloat16" for a in arrays)
    return replace(case, rtol=max(case.rtol, 2**-6)) if coarse else case


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Any) -> None:
    imported = from_onnx(case.model)
    for inputs, expected in case.data_sets:
        given = dict(zip((i.name for i in case.model.graph.input), map(as_value, inputs)))
        feed = {value: given[value.op.name] for value in imported.graph.inputs}  # type: ignore[attr-defined]
        outputs = evaluate(imported.graph, feed, lambda name: imported.weights[name].read())
        wrong = judge(tolerant(case), outputs, expected)
        assert wrong is None or any(re.match(pattern, case.name) for pattern in GAPS)


def test_gaps_are_gaps() -> None:
    """Every pattern still names a case: the list shrinks as cases come out right."""
    assert all(any(re.match(pattern, case.name) for case in CASES) for pattern in GAPS)


def schemas() -> list[Any]:
    """ONNX's schemas of these operators from opset 7 on, the one in force at opset 7 among them."""
    all_ = [s for s in onnx.defs.get_all_schemas_with_history() if s.name in READ_HERE]
    at_seven = {
        s.name: max(t.since_version for t in all_ if t.name == s.name and t.since_version <= 7)
        for s in all_
        if s.domain == "" and s.since_version <= 7
    }
    return [
        s
        for s in all_
        if (not s.deprecated and s.since_version >= at_seven.get(s.name, 0)) or s.domain
    ]


@pytest.mark.parametrize("schema", schemas(), ids=lambda s: f"{s.name}-{s.since_version}")
def test_every_opset_is_read(schema: Any) -> None:
    """Each schema's attributes and inputs are understood by the reader in force."""
    opset = schema.since_version if schema.domain else max(schema.since_version, 7)
    reader = meaning(schema.domain, schema.name, opset)
    assert reader is not None
    assert set(schema.attributes) <= reader.attributes
    parameters = inspect.signature(reader.read).parameters.values()
    positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    assert variadic or len(schema.inputs) <= len(positional)
