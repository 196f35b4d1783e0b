"""Reductions of much to little, in two steps, so that every multiprocessor has a part of them."""

from __future__ import annotations

import math

from whet.ir.graph import Value
from whet.ops.reduce import Reduce
from whet.plan.two_steps import NARROW, in_parts, reduced_axes
from whet.targets.cuda.architecture import Architecture

FEWEST_ELEMENTS = 1024  # for each result; with less, a second launch costs more than it saves
PARTS = range(4, 1025)
RESULTS_OF_A_BLOCK = 32  # where results lie side by side


def in_two_steps(value: Value, architecture: Architecture) -> Value | None:
    """A reduction as one of its parts and one of their results; None where one step is as good."""
    if not isinstance(value.op, Reduce) or value.dtype in NARROW:
        return None
    (x,) = value.inputs
    if x is None or not x.tensor.is_static or 0 in x.shape:
        return None
    axes = reduced_axes(value.op, x)
    results = math.prod(int(size) for size in value.shape)
    inner = max((a for a, size in enumerate(x.shape) if size != 1), default=-1)
    blocks = results if inner in axes else -(-results // RESULTS_OF_A_BLOCK)
    if math.prod(axes.values()) < FEWEST_ELEMENTS or blocks >= architecture.multiprocessors:
        return None
    return in_parts(value.op, x, PARTS)
