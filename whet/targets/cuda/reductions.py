"""Reductions inside an expression: along dimension r, block after block, or one element after the
other."""

from __future__ import annotations

import numpy as np

from whet.ir.sizes import Size, product
from whet.ir.types import NUMPY_DTYPES
from whet.ops.reduce import identity
from whet.plan.kernel import Expression, Let, Literal, Load, Reduction, Select, walk
from whet.targets.cuda import arithmetic
from whet.targets.cuda.arithmetic import COMPUTE
from whet.targets.cuda.expressions import Dims, Emitter, Place, R
from whet.targets.cuda.told import is_whole, most

MOST_UNROLLED = 16


def emit_reduction(e: Emitter, reduction: Reduction) -> Place:
    """The reduction's value."""
    # What guards memory may differ along dimensions that the element itself does not.
    outer = e.dims_of(reduction.symbols).union(*(g.dims for g in e.guards))
    block = int(e.tile.r)
    if "r" in outer or block == 1:
        return _one_by_one(e, reduction, outer)
    if reduction.kind.startswith("arg"):
        return _arg_in_blocks(e, reduction, outer, block)
    return _in_blocks(e, reduction, outer, block)


def hoist(e: Emitter, expression: Expression, known: frozenset[str]) -> None:
    """Computes, here, the reductions that depend on nothing but known indices."""
    if isinstance(expression, Literal | Load):
        return
    if isinstance(expression, Reduction) and expression.symbols <= known:
        e.emit(expression)
        return
    if isinstance(expression, Select):
        # What a guard protects may only be computed where the guard can be.
        return
    if isinstance(expression, Let):
        hoist(e, expression.value, known)
        return
    for child in expression.children:
        hoist(e, child, known)


def total(reduction: Reduction) -> Size:
    """How many elements are reduced."""
    return product(a.size for a in reduction.axes)


def start(kind: str, dtype: str) -> int | float | bool:
    """What an accumulator begins with."""
    first = np.asarray(identity(kind, NUMPY_DTYPES[dtype]))
    return first.item() if first.dtype.kind in "biuf" else float(first)


def combine(kind: str, dtype: str, a: str, b: str) -> str:
    """One more element taken into an accumulator."""
    if kind in ("sum", "prod"):
        return f"{a} {'+' if kind == 'sum' else '*'} {b}"
    return arithmetic.extreme(kind, dtype, a, b)


def across(kind: str, dtype: str, value: str) -> str:
    """The reduction of a tile along r, which stays with size 1."""
    if kind == "sum":
        done = f"tl.sum({value}, 1)"
    elif kind == "prod":
        done = f"tl.reduce({value}, 1, _product)"
    elif dtype == "bool":
        # Triton reduces no single bits.
        name = "tl.max" if kind == "max" else "tl.min"
        return f"{name}({value}.to(tl.int32), 1)[:, None] != 0"
    elif arithmetic.is_float(dtype):
        done = f"tl.reduce({value}, 1, {'_maximum' if kind == 'max' else '_minimum'})"
    else:
        done = f"{'tl.max' if kind == 'max' else 'tl.min'}({value}, 1)"
    return f"{done}[:, None].to({COMPUTE[dtype]})"


def _accumulator(e: Emitter, value: int | float | bool, dtype: str, dims: Dims) -> str:
    name = e.text.fresh("a")
    shape = e.tile.shape(dims)
    e.text.line(f"{name} = tl.full({shape}, {arithmetic.number(value, dtype)}, {COMPUTE[dtype]})")
    return name


def _in_blocks(e: Emitter, reduction: Reduction, outer: Dims, block: int) -> Place:
    count = total(reduction)
    hoist(e, reduction.body, frozenset(e.places) - {a.name for a in reduction.axes})
    sizes = {a.name: a.size for a in reduction.axes}
    dims = outer | R
    if most(count) <= block:
        with _along(e, "0", count, block, sizes):
            value = _masked(e, reduction, reduction.body, dims)
        return Place(e.text.assign(across(reduction.kind, reduction.dtype, value)), outer)
    first = start(reduction.kind, reduction.dtype)
    accumulator = _accumulator(e, first, reduction.dtype, dims)
    begin = e.text.fresh("k")
    with e.text.block(f"for {begin} in range(0, {e.text.number(count)}, {block}):"):
        with _along(e, begin, count, block, sizes):
            value = _masked(e, reduction, reduction.body, dims)
        joined = combine(reduction.kind, reduction.dtype, accumulator, value)
        e.text.line(f"{accumulator} = {joined}")
    return Place(e.text.assign(across(reduction.kind, reduction.dtype, accumulator)), outer)


def _along(e: Emitter, begin: str, count: Size, block: int, sizes: dict):  # type: ignore[no-untyped-def]
    """A scope in which the loops' indices run along r, from the turn `begin` on."""
    places, mask = along_r(e, begin, count, block)
    found = e.unjoin(places, sizes)
    masks = {d: m for d, m in e.masks.items() if d != "r"} | ({"r": mask} if mask else {})
    return e.scope(places=e.placed(found), masks=masks)


def along_r(e: Emitter, begin: str, count: Size, block: int) -> tuple[Place, str]:
    """The numbers of the turns that one block does, and which of them there are ("": all)."""
    lanes = f"tl.arange(0, {block})[None, :]"
    lanes = lanes if e.index == "tl.int32" else f"{lanes}.to({e.index})"
    flat = e.text.assign(lanes if begin == "0" else f"{begin} + {lanes}", "r")
    whole = is_whole(count, block)
    mask = "" if whole else e.text.assign(f"{flat} < {e.text.number(count)}", "m")
    return Place(flat, R), mask


def _masked(e: Emitter, reduction: Reduction, body: Expression, dims: Dims) -> str:
    """The body in every element of the tile, the identity where there is none."""
    value = e.emit(body)
    text = value.text
    if value.dims != dims:
        text = e.text.assign(f"tl.broadcast_to({text}, {e.tile.shape(dims)})")
    if "r" not in e.masks:
        return text
    first = arithmetic.full(start(reduction.kind, reduction.dtype), reduction.dtype)
    return e.text.assign(f"tl.where({e.masks['r']}, {text}, {first})")


def _arg_in_blocks(e: Emitter, reduction: Reduction, outer: Dims, block: int) -> Place:
    """The index of the extreme element: each lane keeps its own, then lanes are compared."""
    (axis,) = reduction.axes
    count, dims = total(reduction), outer | R
    shape, function = e.tile.shape(dims), f"_{reduction.kind}"
    dtype, worst, never = _worst(e, reduction)
    best, where = _accumulator(e, worst, dtype, dims), e.text.fresh("a")
    e.text.line(f"{where} = tl.full({shape}, {never}, tl.int64)")
    begin = e.text.fresh("k")
    with e.text.block(f"for {begin} in range(0, {e.text.number(count)}, {block}):"):
        with _along(e, begin, count, block, {axis.name: axis.size}):
            value = _compared(e, reduction, shape)
            at = e.text.assign(f"tl.broadcast_to({e.places[axis.name].text}, {shape}).to(tl.int64)")
            if "r" in e.masks:
                value = f"tl.where({e.masks['r']}, {value}, {arithmetic.full(worst, dtype)})"
                at = f"tl.where({e.masks['r']}, {at}, {never})"
        e.text.line(f"{best}, {where} = {function}({best}, {where}, {value}, {at})")
    name = e.text.fresh()
    e.text.line(f"_, {name} = tl.reduce(({best}, {where}), 1, {function})")
    return Place(e.text.assign(f"{name}[:, None]"), outer)


def _worst(e: Emitter, reduction: Reduction) -> tuple[str, int | float | bool, str]:
    """The dtype in which elements are compared, the value and the index that never win."""
    dtype = "int8" if reduction.body.dtype == "bool" else reduction.body.dtype
    never = "-1" if reduction.kind.endswith("_last") else e.text.number(total(reduction))
    return dtype, start("max" if "max" in reduction.kind else "min", dtype), never


def _compared(e: Emitter, reduction: Reduction, shape: str) -> str:
    """The element of an index reduction, in every place of a tile."""
    text = e.emit(reduction.body).text
    wide = f"tl.broadcast_to({text}, {shape})"
    return e.text.assign(f"{wide}.to(tl.int8)" if reduction.body.dtype == "bool" else wide)


def _one_by_one(e: Emitter, reduction: Reduction, outer: Dims) -> Place:
    """Every element of the tile reduces for itself."""
    sizes = {a.name: a.size for a in reduction.axes}
    count = total(reduction)
    shape = e.tile.shape(outer)
    is_arg = reduction.kind.startswith("arg")
    if is_arg:
        dtype, worst, never = _worst(e, reduction)
        accumulator, where = _accumulator(e, worst, dtype, outer), e.text.fresh("a")
        e.text.line(f"{where} = tl.full({shape}, {never}, tl.int64)")
    else:
        first = start(reduction.kind, reduction.dtype)
        accumulator = _accumulator(e, first, reduction.dtype, outer)
    turn = e.text.fresh("k")
    is_short = isinstance(count, int) and count <= MOST_UNROLLED
    loop = "tl.static_range" if is_short else "range"
    with e.text.block(f"for {turn} in {loop}({e.text.number(count)}):"):
        places = e.placed(e.unjoin(Place(e.wide(turn)), sizes))
        with e.scope(places=places):
            if is_arg:
                value = _compared(e, reduction, shape)
                at = f"tl.full({shape}, 0, tl.int64) + {turn}"
                taken = f"_{reduction.kind}({accumulator}, {where}, {value}, {at})"
                e.text.line(f"{accumulator}, {where} = {taken}")
            else:
                value = e.emit(reduction.body).text
                joined = combine(reduction.kind, reduction.dtype, accumulator, value)
                e.text.line(f"{accumulator} = {joined}")
    return Place(where if is_arg else accumulator, outer)


def reductions_in(expression: Expression) -> list[Reduction]:
    """All reductions of an expression."""
    return [n for n in walk(expression) if isinstance(n, Reduction)]
