"""Constant folding: what can be computed now, and stays small, is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from whet.ir.evaluate import compute
from whet.ir.graph import Constant, Graph, Value, constant
from whet.ir.sizes import Expr, product
from whet.ir.types import TensorType
from whet.ops.cast import Cast
from whet.ops.movement import Sizes, reshape

MOST_FOLDED = 1 << 16  # elements; a larger constant costs more to store than to compute
MOST_SIZES = 64  # elements of a tensor of sizes that are kept as expressions


def fold_constants(graph: Graph) -> Graph:
    """Operators on constants and sizes become constants and Sizes; weights are never looked at."""
    return graph.map(_folded)


def _folded(value: Value) -> Value | Sequence[Value]:
    if isinstance(value.op, Constant | Sizes) or not _is_foldable(value):
        return value
    known = value.contents
    if known is not None and value.dtype != "string":
        return _from_contents(value, known)
    if all(i is None or isinstance(i.op, Constant) for i in value.inputs):
        return _computed(value)
    return value


def _is_foldable(value: Value) -> bool:
    """Whether all results are tensors of known, bounded size, without effect."""
    if value.op.has_effect or (not value.is_static and not value.op.computes_sizes):
        return False
    return all(isinstance(s.type, TensorType) and _is_small(value, s.type) for s in value.siblings)


def _is_small(value: Value, type: TensorType) -> bool:
    if not type.is_static:
        return False
    given = sum(
        i.op.data.size for i in value.inputs if i is not None and isinstance(i.op, Constant)
    )
    return int(product(type.shape)) <= max(MOST_FOLDED, given)


def _from_contents(value: Value, known: np.ndarray) -> Value:
    """A Constant where all elements are known now, Sizes where some are expressions."""
    elements = known.ravel().tolist()
    if known.dtype != object or not any(isinstance(e, Expr) for e in elements):
        return constant(known, value.dtype) if len(value.siblings) == 1 else value
    if (
        value.dtype not in ("int32", "int64")
        or len(elements) > MOST_SIZES
        or len(value.siblings) > 1
    ):
        return value
    sizes = reshape(Sizes(tuple(elements))(), *value.shape)
    return sizes if value.dtype == "int64" else Cast(value.dtype)(sizes)


def _computed(value: Value) -> Value | Sequence[Value]:
    arrays: list[Any] = [i and i.op.data for i in value.inputs]  # type: ignore[attr-defined]
    if not value.is_static or not hasattr(value.op, "reference"):
        return value
    return tuple(
        constant(array, s.dtype) for array, s in zip(compute(value, arrays, {}), value.siblings)
    )
