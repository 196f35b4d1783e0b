"""How much a step does: bytes read and written, and arithmetic, as far as a kernel tells."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from whet.ir.sizes import Size, product, substitute
from whet.ir.types import NUMPY_DTYPES, TensorType, Type, map_sizes
from whet.plan.bind import bound
from whet.plan.kernel import (
    Apply,
    Axis,
    Expression,
    Kernel,
    Let,
    Load,
    Loops,
    Nest,
    Reduction,
    Template,
    View,
    size_symbols,
    walk,
)
from whet.plan.plan import Step

Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Work:
    """Bytes, each element counted once however often it is used, and operations: a multiplication
    and an addition are two, any other elementwise operator is one."""

    read: int
    written: int
    operations: int


def work_of(step: Step, sizes: Sizes) -> Work:
    """The work of a step whose sizes are known; `sizes` gives the named ones."""
    reads = [nbytes_at(value.type, sizes) for value in step.reads]
    writes = [nbytes_at(value.type, sizes) for value in step.writes]
    if step.kernel is None:
        return Work(sum(reads), sum(writes), _of_operator(step, sizes))
    kernel = bound(step.kernel, sizes)
    reach = _reach(kernel)
    most = [min(reach[n], size) for n, size in enumerate((*reads, *writes))]
    return Work(sum(most[: len(reads)]), sum(most[len(reads) :]), _operations(kernel))


def nbytes_at(type: Type, sizes: Sizes) -> int:
    """The bytes of a tensor at given sizes; 0 for what is none, or not known."""
    if not isinstance(type, TensorType) or type.dtype == "string":
        return 0
    shape = [substitute(size, sizes) for size in type.shape]
    return _number(product(shape)) * type.numpy.itemsize


def _of_operator(step: Step, sizes: Sizes) -> int:
    op = step.value.op
    if not hasattr(op, "operations"):
        return 0
    types = [None if i is None else map_sizes(i.type, lambda s: substitute(s, sizes))
             for i in step.value.inputs]  # fmt: skip
    return _number(op.operations(*types))


def _number(size: Size) -> int:
    return size if isinstance(size, int) else 0


def _reach(kernel: Kernel) -> dict[int, int]:
    """How many bytes of each buffer a kernel touches at most."""
    reach: dict[int, int] = defaultdict(int)
    if isinstance(kernel, Template):
        for view in (*kernel.inputs, kernel.output):
            if view is not None:
                reach[view.buffer] += _viewed(view)
        for buffer in range(kernel.output.buffer + 1, len(kernel.buffers)):
            reach[buffer] = 1 << 62  # further results of the operator: all of them
        _note_loads(kernel.epilogue, _names(kernel.axes), reach)
        return reach
    for nest in kernel.nests:
        names = _names(nest.axes)
        for store in nest.stores:
            reach[store.buffer] += _turns(nest) * NUMPY_DTYPES[store.value.dtype].itemsize
            for expression in (store.value, *(choice.value for choice in store.choices)):
                _note_loads(expression, names, reach)
    return reach


def _viewed(view: View) -> int:
    return _number(product(view.shape)) * NUMPY_DTYPES[view.dtype].itemsize


Axes = dict[str, frozenset[Axis]]
"""For each name in an offset the loops that it changes with."""


def _names(axes: tuple[Axis, ...]) -> Axes:
    return {axis.name: frozenset([axis]) for axis in axes}


def _note_loads(expression: Expression, names: Axes, reach: dict[int, int]) -> None:
    names = dict(names)
    nodes = list(walk(expression))
    for node in nodes:
        if isinstance(node, Reduction):
            names.update(_names(node.axes))
    for node in nodes:  # children first: a Let's index is known before its body is met
        if isinstance(node, Let):
            names[node.name] = _changes_with(node.value.symbols, names)
    for node in nodes:
        if isinstance(node, Load):
            axes = _changes_with(size_symbols(node.offset), names)
            count = math.prod(_number(axis.size) for axis in axes)
            reach[node.buffer] += count * NUMPY_DTYPES[node.dtype].itemsize


def _changes_with(symbols: frozenset[str], names: Axes) -> frozenset[Axis]:
    return frozenset[Axis]().union(*(names.get(name, frozenset()) for name in symbols))


def _turns(nest: Nest) -> int:
    return math.prod(_number(axis.size) for axis in nest.axes)


def _operations(kernel: Kernel) -> int:
    if isinstance(kernel, Loops):
        return sum(
            _turns(nest) * sum(_cost(s.value) + (s.combine is not None) for s in nest.stores)
            for nest in kernel.nests
        )
    epilogue = math.prod(_number(axis.size) for axis in kernel.axes) * _cost(kernel.epilogue)
    op = kernel.op
    if not hasattr(op, "operations"):
        return epilogue
    views = [None if v is None else TensorType(v.dtype, v.shape) for v in kernel.inputs]
    return epilogue + _number(op.operations(*views))


def _cost(expression: Expression) -> int:
    """Operations for one element; what a reduction's body holds counts for each of its turns."""
    total, seen = 0, set[int]()
    stack = [expression]
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, Reduction):
            total += math.prod(_number(axis.size) for axis in node.axes) * (1 + _cost(node.body))
            continue
        total += isinstance(node, Apply)
        stack.extend(node.children)
    return total
