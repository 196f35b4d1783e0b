"""Every operator at every opset: its reader takes all inputs and attributes that ONNX lists."""

from __future__ import annotations

import inspect
from typing import Any

import onnx.defs
import onnx.helper
import pytest

import whet.frontends.onnx  # noqa: F401  (fills the table of readers)
from whet.frontends.onnx.registry import meaning

FIRST = {"": 7, "ai.onnx.ml": 1}
LAST = {"": onnx.defs.onnx_opset_version(), "ai.onnx.ml": 5}

MISSING: dict[str, str] = {}
"""Operators without a reader, each with the reason."""

ALIASES = {"bilinear": "linear"}  # GridSample's old word
OPTIONAL = onnx.defs.OpSchema.FormalParameterOption.Optional

SCHEMAS = [s for s in onnx.defs.get_all_schemas_with_history() if s.domain in FIRST]


def opsets(schema: Any) -> range:
    """The opsets at which a schema holds, among those that are read."""
    same = (s for s in SCHEMAS if (s.name, s.domain) == (schema.name, schema.domain))
    later = [s.since_version for s in same if s.since_version > schema.since_version]
    first = max(schema.since_version, FIRST[schema.domain])
    return range(first, min([*later, LAST[schema.domain] + 1]))


READ = [s for s in SCHEMAS if opsets(s) and not s.deprecated and s.name not in MISSING]


@pytest.mark.parametrize("schema", READ, ids=lambda s: f"{s.name}-{s.since_version}")
def test_reader_takes_what_the_schema_lists(schema: Any) -> None:
    reader = meaning(schema.domain, schema.name, opsets(schema)[0])
    assert reader is not None
    assert set(schema.attributes) <= reader.attributes
    parameters = inspect.signature(reader.read).parameters.values()
    places = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    takes_any = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    assert takes_any or len(places) >= len(schema.inputs)
    needed = [i for i, given in enumerate(schema.inputs) if given.option != OPTIONAL]
    trailing = places[max(needed, default=-1) + 1 : len(schema.inputs)]
    assert not [p.name for p in trailing if p.default is p.empty]


@pytest.mark.parametrize("schema", READ, ids=lambda s: f"{s.name}-{s.since_version}")
def test_attributes_have_the_defaults_of_the_schema(schema: Any) -> None:
    reader = meaning(schema.domain, schema.name, opsets(schema)[0])
    assert reader is not None
    parameters = inspect.signature(reader.read).parameters
    for name, attribute in schema.attributes.items():
        if attribute.default_value.type:
            want = plain(onnx.helper.get_attribute_value(attribute.default_value))
            got = parameters[name].default
            assert got is None or got == want, name  # None: the reader fills it in


def plain(default: Any) -> Any:
    """A default as readers write it."""
    if isinstance(default, bytes):
        return ALIASES.get(default.decode(), default.decode())
    if isinstance(default, float):
        return pytest.approx(default)
    return tuple(map(plain, default)) if isinstance(default, list) else default


def test_missing_operators_are_missing() -> None:
    """The list shrinks as readers come."""
    assert not [name for name in MISSING if meaning("", name, LAST[""])]
