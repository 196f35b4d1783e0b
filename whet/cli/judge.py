"""How far outputs are from what is expected, and how far they may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

TOLERANCE = {
    "float64": 1e-6,
    "complex128": 1e-6,
    "float16": 2e-2,
    "bfloat16": 5e-2,
    "float32": 1e-3,
}
EIGHT_BITS = 2.5e-1


@dataclass(frozen=True)
class Finding:
    """How far an output is from what is expected, and how far it may be."""

    name: str
    type: str
    difference: float
    tolerance: float

    @property
    def is_right(self) -> bool:
        return self.difference <= self.tolerance


def compare(
    outputs: Mapping[str, Any], expected: Mapping[str, Any], tolerance: float | None
) -> list[Finding]:
    """A finding for each output; sequences count as their elements."""
    return [compare_one(name, outputs[name], expected[name], tolerance) for name in expected]


def compare_one(name: str, actual: Any, expected: Any, tolerance: float | None) -> Finding:
    """How far one output is from what is expected."""
    if expected is None or actual is None:
        difference = 0.0 if expected is actual else float("inf")
        return Finding(name, "optional", difference, 0.0)
    if isinstance(expected, list):
        same = isinstance(actual, list) and len(actual) == len(expected)
        pairs = zip(actual, expected) if same else ()
        found = [compare_one(name, a, e, tolerance) for a, e in pairs]
        difference = max((f.difference for f in found), default=0.0 if same else float("inf"))
        allowed = max((f.tolerance for f in found), default=0.0)
        return Finding(name, f"sequence of {len(expected)}", difference, allowed)
    actual, expected = np.asarray(actual), np.asarray(expected)
    kind = f"{actual.dtype}[{','.join(map(str, actual.shape))}]"
    allowed = tolerance if tolerance is not None else _tolerance(str(actual.dtype))
    return Finding(name, kind, relative_error(actual, expected), allowed)


def _tolerance(dtype: str) -> float:
    """What rounding may do to a dtype; integers and flags must be equal."""
    return EIGHT_BITS if "float8" in dtype or "float4" in dtype else TOLERANCE.get(dtype, 0.0)


def relative_error(actual: Any, expected: Any) -> float:
    """The largest difference over the largest finite element expected; inf for other shapes."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    if actual.shape != expected.shape:
        return float("inf")
    if expected.dtype == object:
        return 0.0 if np.array_equal(actual, expected) else float("inf")
    kind = np.complex128 if expected.dtype.kind == "c" else np.float64
    a, e = actual.astype(kind), expected.astype(kind)
    differ = ~((a == e) | (np.isnan(a) & np.isnan(e)))
    if not differ.any():
        return 0.0
    if not np.isfinite(a[differ]).all() or not np.isfinite(e[differ]).all():
        return float("inf")
    # What should be all zeros is judged by the size of its errors.
    scale = np.max(np.abs(e[np.isfinite(e)]), initial=1e-4)
    return float(np.max(np.abs(a[differ] - e[differ])) / scale)
