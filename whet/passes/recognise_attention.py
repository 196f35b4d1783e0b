"""Attention, found from the product of probabilities and values backwards.

Between that product and the one of queries and keys stand, in any order and number: scaling, of
the scores or of queries and keys by a root each; masks, added or selected; a cap by tanh; casts; a
guard that makes NaN 0. Heads may be axes of their own or merged with the batch, and keys and values
repeated for groups of heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from whet.ir.graph import Value, constant
from whet.ir.match import Matcher
from whet.ir.rewrite import Built, Rules, once, rule, such
from whet.ir.sizes import Size, is_different, product
from whet.ir.types import FLOATS, NUMPY_DTYPES
from whet.ops.attention import Attention
from whet.ops.cast import Cast
from whet.ops.contract import MatMul
from whet.ops.elementwise import Add, Div, IsNaN, Mul, Neg, Sub, Tanh, Where
from whet.ops.movement import Broadcast, Reshape, Transpose, broadcast_to, reshape, transpose
from whet.ops.reduce import Softmax
from whet.passes.axes import groups
from whet.passes.causal import causal_offset
from whet.passes.movement import only

Number = Callable[[Value], Any]

HIDDEN = -1e4  # a score this low has no weight beside any that is seen


@dataclass(frozen=True)
class Scores:
    """scale * q @ k.T, capped, plus the masks."""

    q: Value
    k: Value
    scale: float = 1.0
    softcap: float = 0.0
    masks: tuple[Value, ...] = ()

    def times(self, factor: float) -> Scores | None:
        """All of it multiplied; what is capped already cannot be."""
        if self.softcap:
            return None
        masks = tuple(m * factor for m in self.masks)
        return replace(self, scale=self.scale * factor, masks=masks)

    def masked(self, mask: Value) -> Scores:
        return replace(self, masks=(*self.masks, mask))


def is_probability(value: Value) -> bool:
    """Whether it is a softmax along its last axis, as far as operators tell."""
    return softmaxed(value, lambda _: 0) is not None


def softmaxed(value: Value, number: Number) -> Value | None:
    """x where the Value is softmax(x) along the last axis, cast or with 0 for NaN."""
    if isinstance(value.op, Cast) and value.dtype in FLOATS:
        return softmaxed(only(value), number)
    if isinstance(value.op, Where):
        test, zero, softmax = value.inputs
        if test is None or not isinstance(test.op, IsNaN) or only(test) is not softmax:
            return None
        return softmaxed(softmax, number) if zero is not None and number(zero) == 0 else None
    is_last = isinstance(value.op, Softmax) and value.op.axis % value.rank == value.rank - 1
    return only(value) if is_last else None


@rule(lambda p, v: MatMul()(once(such(p, is_probability)), v))
def attention(p: Value, v: Value, root: Value, matcher: Matcher) -> Built:
    scored = softmaxed(p, matcher.number)
    scores = scores_of(scored, matcher.number) if scored is not None else None
    if scores is None:
        return "the softmax is not over products of queries and keys"
    v = only(v) if isinstance(v.op, Cast) and only(v).dtype == scores.q.dtype else v
    if not scores.q.dtype == scores.k.dtype == v.dtype:
        return "queries, keys and values have different dtypes"
    return built(scores, v, root, matcher.number)


def scores_of(value: Value, number: Number) -> Scores | None:
    """What the scores are made of, or None where they are no products of queries and keys."""
    read = READ_SCORES.get(type(value.op))
    return read(value, number) if read is not None and value.dtype in FLOATS else None


def _product(value: Value, number: Number) -> Scores | None:
    q, k_transposed = value.inputs
    assert q is not None
    assert k_transposed is not None
    q, by_q = unscaled(q, number)
    k_transposed, by_k = unscaled(k_transposed, number)
    if k_transposed.rank != q.rank:
        return None
    return Scores(q, swapped(k_transposed), by_q * by_k)


def swapped(x: Value) -> Value:
    """x with its last two axes in each other's place, by one transpose or none."""
    order: tuple[int, ...] = tuple(range(x.rank))
    if isinstance(x.op, Transpose):
        order, x = x.op.order, only(x)
    return transpose(x, *order[:-2], order[-1], order[-2])


def unscaled(value: Value, number: Number) -> tuple[Value, float]:
    """x and c where the Value is x * c, also behind a transpose or a reshape."""
    if isinstance(value.op, Transpose | Reshape):
        x, factor = unscaled(only(value), number)
        return (value.op(x), factor) if factor != 1.0 else (value, 1.0)
    found = _scaled(value, number)
    return found or (value, 1.0)


def _scaled(value: Value, number: Number) -> tuple[Value, float] | None:
    if not isinstance(value.op, Mul | Div):
        return None
    a, b = value.inputs
    assert a is not None
    assert b is not None
    for x, other in ((a, b), (b, a)):
        factor = number(other)
        if factor is None or x.shape != value.shape:
            continue
        if isinstance(value.op, Mul):
            return x, float(factor)
        if x is a and factor != 0:
            return x, 1 / factor
    return None


def _scaling(value: Value, number: Number) -> Scores | None:
    found = _scaled(value, number)
    if found is None:
        return _scaled_heads(value, number) if isinstance(value.op, Mul) else None
    x, factor = found
    if isinstance(x.op, Tanh):
        return _capped(only(x), factor, number)
    scores = scores_of(x, number)
    return scores and scores.times(factor)


def _scaled_heads(value: Value, number: Number) -> Scores | None:
    """Scores times a factor that does not depend on query and key: the queries are scaled."""
    a, b = value.inputs
    assert a is not None
    assert b is not None
    for x, factor in ((a, b), (b, a)):
        if any(size != 1 for size in factor.shape[-2:]) or not _keeps_shape(x, value):
            continue
        scores = scores_of(x, number)
        if scores is not None and not scores.softcap:
            masks = tuple(m * factor for m in scores.masks)
            return replace(scores, q=scores.q * factor, masks=masks)
    return None


def _capped(x: Value, cap: float, number: Number) -> Scores | None:
    """cap * tanh(x), where x is scores over cap."""
    scores = scores_of(x, number)
    if scores is None or scores.masks or scores.softcap or cap <= 0:
        return None
    return replace(scores, scale=scores.scale * cap, softcap=cap)


def _sum(value: Value, number: Number) -> Scores | None:
    a, b = value.inputs
    assert a is not None
    assert b is not None
    for x, mask in ((a, b), (b, a)):
        scores = scores_of(x, number) if _keeps_shape(x, value) else None
        if scores is not None:
            return scores.masked(mask)
    return None


def _keeps_shape(x: Value, value: Value) -> bool:
    """Whether no axis of x is stretched; named sizes have been found to fit, where they do not
    have to be a number: that they may be 1 in its place is for a run to tell."""
    return x.rank == value.rank and all(
        a == b or not (a == 1 or isinstance(b, int) or is_different(a, b))
        for a, b in zip(x.shape, value.shape)
    )


def _difference(value: Value, number: Number) -> Scores | None:
    x, mask = value.inputs
    assert x is not None
    assert mask is not None
    scores = scores_of(x, number) if _keeps_shape(x, value) else None
    return scores and scores.masked(Neg()(mask))


def _selection(value: Value, number: Number) -> Scores | None:
    """Scores where a condition holds (or does not), elsewhere one so low that it has no weight."""
    condition, *sides = value.inputs
    assert condition is not None
    for seen, x in enumerate(sides):
        fill = sides[1 - seen]
        assert x is not None
        assert fill is not None
        low = number(fill)
        if low is None or low > HIDDEN or not _keeps_shape(x, value):
            continue
        scores = scores_of(x, number)
        if scores is not None:
            sides_of_mask = [constant(0.0, x.dtype), _hiding(low, x.dtype)]
            mask = Where()(condition, *(sides_of_mask if seen == 0 else sides_of_mask[::-1]))
            return scores.masked(mask)
    return None


def _hiding(low: float, dtype: str) -> Value:
    """What hides a score when added: -inf, or for a finite number the least there is.

    A query whose keys are all hidden by a finite number weighs them alike: it absorbs every score.
    """
    import ml_dtypes

    infinite = low == float("-inf")
    return constant(low if infinite else float(ml_dtypes.finfo(NUMPY_DTYPES[dtype]).min), dtype)


def _cast(value: Value, number: Number) -> Scores | None:
    return scores_of(only(value), number) if only(value).dtype in FLOATS else None


READ_SCORES: dict[type[Any], Callable[[Value, Number], Scores | None]] = {
    MatMul: _product,
    Mul: _scaling,
    Div: _scaling,
    Add: _sum,
    Sub: _difference,
    Where: _selection,
    Cast: _cast,
}


def built(scores: Scores, v: Value, root: Value, number: Number) -> Built:
    """The operator on four axes, and its result in the shape that was there."""
    q, k = scores.q, scores.k
    if not q.rank == k.rank == v.rank:
        return "queries, keys and values have different numbers of axes"
    heads = _heads(q, k, v)
    if heads is None:
        return "the batch axes of queries, keys and values differ"
    q, k, v = heads
    offset, others = _causal(scores.masks, (q.shape[2], k.shape[2]), number)
    masks = [_fitted(m, scores.q, q, k) for m in others]
    if any(m is None for m in masks):
        return "a mask stretches the scores"
    mask: Value | None = None
    for m in masks:
        mask = m if mask is None else mask + m
    k, v = _grouped(k, v)
    right = None if offset is None else 0
    op = Attention(scores.scale, scores.softcap, None, right, 0 if offset is None else offset)
    y = op(q, k, v, mask)
    return reshape(y if y.dtype == root.dtype else Cast(root.dtype)(y), *root.shape)


def _causal(
    masks: tuple[Value, ...], plane: tuple[Size, Size], number: Number
) -> tuple[Size | None, list[Value]]:
    """How far behind its place each query sees keys, if a mask says so, and the other masks."""
    for i, mask in enumerate(masks):
        found = causal_offset(mask, number) if mask.shape[-2:] == plane else None
        if found is not None:
            offset, rest = found
            others = [*masks[:i], *masks[i + 1 :], *([] if rest is None else [rest])]
            return offset, others
    return None, list(masks)


def _heads(q: Value, k: Value, v: Value) -> tuple[Value, Value, Value] | None:
    """q, k and v as [B, H, S, D]."""
    if k.shape[:-2] != v.shape[:-2]:
        return None
    if q.rank == 4:
        return (q, k, v) if k.shape[1] in (1, q.shape[1]) and _broadcasts(k, q) else None
    if q.shape[:-2] != k.shape[:-2]:
        return None
    apart = [_apart(x) for x in (q, k, v)]
    if all(a is not None and a.shape[:2] == (apart[0] or a).shape[:2] for a in apart):
        return tuple(apart)  # type: ignore[return-value]
    lead = (product(q.shape[:-3]), *(q.shape[-3:-2] or (1,))) if q.rank != 3 else (q.shape[0], 1)
    return tuple(reshape(x, *lead, *x.shape[-2:]) for x in (q, k, v))  # type: ignore[return-value]


def _broadcasts(k: Value, q: Value) -> bool:
    return k.shape[0] in (1, q.shape[0])


def _apart(x: Value) -> Value | None:
    """[B, H, S, D] where x is that with its first two axes merged."""
    if x.rank != 3 or not isinstance(x.op, Reshape):
        return None
    before = only(x)
    return before if before.rank == 4 and before.shape[2:] == x.shape[1:] else None


def _fitted(mask: Value, old_q: Value, q: Value, k: Value) -> Value | None:
    """The mask so that it broadcasts to [B, H, S, T]."""
    scores = (*q.shape[:3], k.shape[2])
    if old_q.rank != 4 and mask.rank > 2:
        lead = old_q.shape[:-2]
        wide = (1,) * (old_q.rank - mask.rank) + mask.shape
        if all(size == 1 for size in wide[:-2]):
            mask = reshape(mask, *wide[-2:])
        elif wide[:-2] == lead:
            mask = reshape(mask, *q.shape[:2], *wide[-2:])
        else:
            return None
    if mask.rank > 4:
        return None
    fits = all(m == 1 or s != 1 for m, s in zip(reversed(mask.shape), reversed(scores)))
    return mask if fits else None


def _grouped(k: Value, v: Value) -> tuple[Value, Value]:
    """Keys and values without the repetition for each head of a group."""
    once_k, once_v = _unrepeated(k), _unrepeated(v)
    if once_k is None or once_v is None or once_k.shape[:2] != once_v.shape[:2]:
        return k, v
    return once_k, once_v


def _unrepeated(x: Value) -> Value | None:
    """[B, G, T, D] where x is that with each of G repeated: unsqueezed, broadcast, merged."""
    order = x.op.order if isinstance(x.op, Transpose) else tuple(range(x.rank))
    merged = only(x) if isinstance(x.op, Transpose) else x
    if not isinstance(merged.op, Reshape) or not isinstance(only(merged).op, Broadcast):
        return None
    wide = only(merged)
    source, axis = only(wide), order[1]
    narrow = (1,) * (wide.rank - source.rank) + source.shape
    runs = groups(wide.shape, merged.shape)
    repeated = [i for i, (a, b) in enumerate(zip(narrow, wide.shape)) if a != b]
    if runs is None or len(repeated) != 1 or narrow[repeated[0]] != 1:
        return None
    run = next((inputs for inputs, outputs in runs if outputs == [axis]), [])
    if not run or run[-1] != repeated[0]:
        return None
    shape: list[Size] = list(merged.shape)
    shape[axis] = product(narrow[i] for i in run)
    return transpose(reshape(source, *shape), *order)


@rule(lambda x, m, s, t: Reshape(t)(Reshape(s)(x) + m))
def mask_on_split_batch(x: Value, m: Value, s: tuple[Size, ...], t: tuple[Size, ...]) -> Built:
    """A mask for each window of a batch, added with the windows apart, is added to the batch."""
    if x.shape != t or m.rank > len(s) or m.rank < 2:
        return "the reshape does not bring back the shape"
    runs = groups(x.shape, s)
    wide = (1,) * (len(s) - m.rank) + m.shape
    if runs is None or any(len(inputs) > 1 for inputs, _ in runs):
        return "the reshape merges axes"
    stretched: list[Size] = list(wide)
    merged: list[Size] = [1] * x.rank
    for (axis,), parts in runs:
        if any(wide[i] != 1 for i in parts):
            for i in parts:
                stretched[i] = s[i]
            merged[axis] = x.shape[axis]
    return x + reshape(broadcast_to(reshape(m, *wide), *stretched), *merged)


ATTENTION: Rules = [mask_on_split_batch, attention]
