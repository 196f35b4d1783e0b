"""How much of a device a plan takes, before anything is compiled or run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from whet.ir.graph import Value
from whet.ir.types import TensorType
from whet.plan.plan import Plan, nbytes
from whet.plan.target import Footprint
from whet.targets.cuda import codegen
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.arithmetic import POINTER
from whet.targets.cuda.memory import GRAIN, Heap, aligned, room

CODE = 16 << 10  # bytes of a kernel's machine code, about
CONTEXTS_OWN = 390 << 10  # bytes of code that a context has room for as it is, on an H200


def footprint(plan: Plan, given: Sequence[Value], architecture: Architecture) -> Footprint:
    """What a session takes for a plan, `given` being what it is to keep; inputs and outputs come
    from the host and go there, through the arena where it has room for them."""
    kernels = set(plan.kernels)
    launches = [f for k in kernels for f in codegen.to_triton(k, architecture).launches]
    sizes = room(plan.arena, launches)
    kept = [aligned(nbytes(v.tensor)) for v in given if is_held(v)]
    touched = {v for s in plan.steps if s.kernel is not None for v in (*s.reads, *s.writes)}
    ends = (*plan.graph.inputs, *plan.graph.outputs)
    staged = [
        nbytes(v.tensor)
        for v in dict.fromkeys(ends)
        if v in touched and v not in plan.guests and not v.is_static and is_held(v)
    ]
    blocks = itertools.count(GRAIN, 1 << 50)  # none touches another
    heap = Heap(lambda size: next(blocks), lambda block: None)
    heap.reserve(sum(kept) + sum(sizes))
    pieces = [heap.take(size) for size in (*kept, sum(sizes), *staged)]
    code = aligned(max(0, CODE * len(kernels) - CONTEXTS_OWN), GRAIN)
    ends_take = sum(map(aligned, staged))
    assert len(pieces) > len(staged)  # they hold their places until all are counted
    return Footprint(sum(kept), sum(sizes), ends_take, code, heap.taken + code)


def is_held(value: Value) -> bool:
    """Whether a Value is a tensor that lies on the device."""
    return isinstance(value.type, TensorType) and value.type.dtype in POINTER
