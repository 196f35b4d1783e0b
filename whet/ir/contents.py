"""The elements of Values that are known from sizes and constants alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from whet.ir.atoms import Undecided
from whet.ir.types import TensorType

if TYPE_CHECKING:
    from whet.ir.value import Value

MOST_CONTENTS = 4096  # elements; more than that is data, not sizes


def contents(value: Value) -> np.ndarray | None:
    """The elements of a Value, symbolic ones as objects; None where only a run can tell."""
    stack = [value]
    while stack:
        top = stack[-1]
        unknown = _inputs_without_contents(top)
        stack.extend(unknown)
        if not unknown:
            top.__dict__.setdefault("_contents", _contents(top))
            stack.pop()
    known: np.ndarray | None = value.__dict__["_contents"]
    return known


def _inputs_without_contents(value: Value) -> list[Value]:
    """The inputs to look at before value's own contents can be told."""
    if "_contents" in value.__dict__ or not _may_have_contents(value):
        return []
    return [i for i in value.inputs if i is not None and "_contents" not in i.__dict__]


def _may_have_contents(value: Value) -> bool:
    if not isinstance(value.type, TensorType) or value.op.has_effect:
        return False
    if not (value.op.computes_sizes or value.op.folds):
        return False
    sizes = [s for s in value.shape if isinstance(s, int)]
    return len(sizes) == value.rank and math.prod(sizes) <= MOST_CONTENTS


def _contents(value: Value) -> np.ndarray | None:
    if not _may_have_contents(value):
        return None
    arrays = [None if i is None else i.__dict__["_contents"] for i in value.inputs]
    if any(i is not None and a is None for i, a in zip(value.inputs, arrays)):
        return None
    symbolic = any(a is not None and a.dtype == object for a in arrays)
    if symbolic and not value.op.computes_sizes:
        return None
    try:
        with np.errstate(all="ignore"):
            result = value.op.reference(*arrays)
    except Undecided:
        return None
    return np.asarray(result[value.index] if isinstance(result, tuple) else result)
