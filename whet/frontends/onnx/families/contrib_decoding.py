"""com.microsoft operators of decoders: rotary positions, caches, biases by position."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from whet.frontends.onnx.families.attention import additive, scaled_query
from whet.frontends.onnx.families.contrib_attention import by_head
from whet.frontends.onnx.families.matmul import matmul
from whet.frontends.onnx.registry import Refused, contrib_op
from whet.ir.graph import Value, constant
from whet.ir.sizes import Size, floor_divide, maximum
from whet.ops.attention import Attention as Attend
from whet.ops.attention import masked_softmax, merge_heads, rotate, split_heads, weigh, window
from whet.ops.elementwise import (
    Abs,
    And,
    Cast,
    Clip,
    Exp,
    Less,
    LessOrEqual,
    Log,
    Max,
    Min,
    Sigmoid,
    Where,
)
from whet.ops.index import number, positions
from whet.ops.movement import (
    Gather,
    Pad,
    reshape,
    slice_axis,
    split,
    transpose,
    unsqueeze,
)
from whet.ops.reduce import Reduce, RMSNorm, narrowed, widened

if TYPE_CHECKING:
    from whet.frontends.onnx.reading import Reading


@contrib_op
def RotaryEmbedding(
    x: Value,
    position_ids: Value,
    cos_cache: Value,
    sin_cache: Value,
    *,
    interleaved: int = 0,
    is_packed_batching: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
    scale: float = 1.0,
) -> Value:
    if is_packed_batching:
        raise Refused("is_packed_batching is only known to CUDA kernels")
    flat = x.rank == 3
    turned = 2 * cos_cache.shape[1]
    heads: Size = num_heads if num_heads else floor_divide(x.shape[-1], turned)
    y = by_head(x, heads) if flat else transpose(x, 0, 2, 1, 3)
    length = y.shape[1]
    if position_ids.rank == 1 or position_ids.shape == (1,):
        at = reshape(position_ids) + reshape(positions(length, 1, 0), 1, length)
    else:
        at = position_ids
    y = rotated(y, cos_cache, sin_cache, at, bool(interleaved))
    return reshape(y, *x.shape) if flat else transpose(y, 0, 2, 1, 3)


def rotated(x: Value, cosines: Value, sines: Value, at: Value, interleaved: bool) -> Value:
    """x[B, S, H, D] turned by the rows of the caches at the positions [B or 1, S]."""
    cosine, sine = (unsqueeze(widened(Gather(0)(c, at)), 2) for c in (cosines, sines))
    return narrowed(rotate(widened(x), cosine, sine, interleaved), x)


@contrib_op
def GroupQueryAttention(
    query: Value,
    key: Value | None,
    value: Value | None,
    past_key: Value | None,
    past_value: Value | None,
    seqlens_k: Value,
    total_sequence_length: Value,
    cos_cache: Value | None = None,
    sin_cache: Value | None = None,
    position_ids: Value | None = None,
    attention_bias: Value | None = None,
    head_sink: Value | None = None,
    k_scale: Value | None = None,
    v_scale: Value | None = None,
    q_norm_weight: Value | None = None,
    k_norm_weight: Value | None = None,
    *,
    causal: int = 1,
    do_rotary: int = 0,
    k_quant_type: str = "NONE",
    kv_cache_bit_width: int = 0,
    kv_num_heads: int,
    local_window_size: int = -1,
    num_heads: int,
    qk_norm_epsilon: float = 1e-6,
    qk_output: int = 0,
    rotary_interleaved: int = 0,
    scale: float = 0.0,
    sliding_window_cache: int = 0,
    smooth_softmax: int = -1,
    softcap: float = 0.0,
    v_quant_type: str = "NONE",
    node: Reading,
) -> tuple[Value | None, ...]:
    if k_quant_type != "NONE" or v_quant_type != "NONE" or sliding_window_cache:
        raise Refused("a quantised or window-sized cache is not read yet")
    q, k, v = _grouped_heads(query, key, value, num_heads, kv_num_heads)
    if q_norm_weight is not None and k_norm_weight is not None:
        q = RMSNorm(1, qk_norm_epsilon)(q, q_norm_weight)
        k = RMSNorm(1, qk_norm_epsilon)(k, k_norm_weight)

    total = node.number(total_sequence_length, "total_sequence_length")
    batch, length = q.shape[:2]
    ends = reshape(Cast("int64")(seqlens_k), batch, 1) + 1
    # A prompt fills the cache from its start, however short its sequences are.
    starts = ends - number(length, "int64")
    starts = constant([[0]], "int64") if total == length else starts
    if do_rotary and cos_cache is not None and sin_cache is not None:
        at = position_ids if position_ids is not None else starts + positions(length, 2, 1)
        q, k = (rotated(x, cos_cache, sin_cache, at, bool(rotary_interleaved)) for x in (q, k))

    keys = maximum(total, 0 if past_key is None else past_key.shape[2])
    present_key, present_value = (
        cached(past, new, starts, keys) for past, new in ((past_key, k), (past_value, v))
    )
    mask = _grouped_mask(q, starts, ends, keys, bool(causal), local_window_size)
    mask = mask if attention_bias is None else mask + _to_length(attention_bias, keys)
    q = transpose(q, 0, 2, 1, 3)
    if scale == 0.0:
        q, scale = scaled_query(q)
    op = Attend(scale, softcap)
    if head_sink is None and smooth_softmax != 1 and not node.wanted(3):
        return (
            merge_heads(op(q, present_key, present_value, mask)),
            present_key,
            present_value,
            None,
        )
    scores = op.masked(op.scores(q, present_key), mask)
    probabilities = sink_softmax(scores, head_sink, smooth_softmax == 1)
    y = narrowed(weigh(probabilities, present_value), q)
    products = narrowed(scores if qk_output == 1 else probabilities, q)
    return merge_heads(y), present_key, present_value, products


def sink_softmax(scores: Value, sink: Value | None, smooth: bool) -> Value:
    """Softmax with one more score in the sum: 0, or each head's own (Xiao et al. 2023)."""
    if sink is None and not smooth:
        return masked_softmax(scores)
    extra = constant(0.0, scores.dtype)
    if sink is not None:
        extra = reshape(narrowed(sink, scores), 1, sink.shape[0], 1, 1)
    high = Max()(Reduce("max", (3,))(scores), extra)
    e = Exp()(scores - high)
    return e / (Reduce("sum", (3,))(e) + Exp()(extra - high))


def _grouped_heads(
    query: Value, key: Value | None, value: Value | None, heads: int, groups: int
) -> tuple[Value, Value, Value]:
    """q[B, S, H, D], k and v[B, S, G, D], from one packed tensor or three."""
    if key is not None and value is not None:
        return by_head(query, heads), by_head(key, groups), by_head(value, groups)
    size = floor_divide(query.shape[2], heads + 2 * groups)
    widths = (heads * size, groups * size, groups * size)
    q, k, v = split(query, widths, 2)
    return by_head(q, heads), by_head(k, groups), by_head(v, groups)


def cached(past: Value | None, new: Value, starts: Value, keys: Size) -> Value:
    """The cache [B, G, keys, D] with new[B, S, G, D] written from starts[B or 1, 1] on."""
    batch, length, groups, size = new.shape
    place = positions(keys, 2, 1) - starts
    inside = And()(LessOrEqual()(0, place), Less()(place, number(length, "int64")))
    last = number(length - 1, "int64")
    row = Clip()(place, constant(0, "int64"), last)
    row = row + positions(batch, 2, 0) * number(length, "int64")
    rows = reshape(new, batch * length, groups, size)
    written = transpose(Gather(0)(rows, row), 0, 2, 1, 3)
    old = constant(0, new.dtype)
    if past is not None:
        after = keys - past.shape[2]
        old = past if after == 0 else Pad((0,) * 4, (0, 0, after, 0))(past, 0)
        kept = Less()(positions(keys, 4, 2), unsqueeze(starts, 2, 3))
        old = Where()(kept, old, constant(0, old.dtype))
    return Where()(unsqueeze(inside, 1, 3), written, old)


def _grouped_mask(
    q: Value, starts: Value, ends: Value, keys: Size, causal: bool, local: int
) -> Value:
    """What to add to scores: queries stand from `starts` on, keys count up to `ends`."""
    key = positions(keys, 4, 3)
    if not causal:
        return additive(Less()(key, unsqueeze(ends, 2, 3)), q.dtype)
    position = positions(q.shape[1], 4, 2) + unsqueeze(starts, 2, 3)
    left = local - 1 if local > 0 else None
    return additive(window(position, key, left, 0), q.dtype)


def _to_length(mask: Value, keys: Size) -> Value:
    """An additive mask with its last axis as long as the cache."""
    missing = keys - mask.shape[-1]
    if missing == 0:
        return mask
    return Pad((0,) * mask.rank, (*(0,) * (mask.rank - 1), missing))(mask, 0)


@contrib_op
def RelativePositionBias(
    bias_table: Value,
    query_length: Value,
    key_length: Value,
    *,
    is_bidirectional: int = 0,
    max_distance: int,
    node: Reading,
) -> Value:
    """T5's bias: a row of the table for each bucket of distances (Raffel et al. 2020)."""
    queries = node.number(query_length, "query_length")
    keys = node.number(key_length, "key_length")
    buckets = bias_table.shape[0]
    if not isinstance(buckets, int):
        raise Refused("the number of buckets is not known")
    distance = positions(keys, 2, 1) - positions(queries, 2, 0)
    first = constant(0, "int64")
    if is_bidirectional:
        buckets //= 2
        first = Where()(Less()(0, distance), constant(buckets, "int64"), first)
        distance = Abs()(distance)
    else:
        distance = Max()(0 - distance, 0)
    exact = buckets // 2
    share = (buckets - exact) / float(np.log(max_distance / exact))
    spread = Log()(Cast("float32")(Max()(distance, 1)) / float(exact)) * share
    far = Min()(Cast("int64")(spread) + exact, buckets - 1)
    bucket = first + Where()(Less()(distance, exact), distance, far)
    return unsqueeze(transpose(Gather(0)(bias_table, bucket), 2, 0, 1), 0)


@contrib_op
def GatedRelativePositionBias(
    query_layer: Value,
    query_bias: Value,
    rel_pos: Value,
    weight: Value,
    bias: Value,
    eco_a: Value,
    token_offset: Value | None = None,
    *,
    num_heads: int,
) -> Value:
    if token_offset is not None:
        raise Refused("token_offset, for sequences without padding, is only known to CUDA kernels")
    q = split_heads(query_layer + query_bias, num_heads)
    gates = matmul(q, weight) + bias
    half = floor_divide(gates.shape[3], 2)
    parts = reshape(gates, *gates.shape[:3], 2, half)
    both = Sigmoid()(Reduce("sum", (4,))(parts))
    u, r = (reshape(slice_axis(both, 3, i, 1), *gates.shape[:3], 1) for i in range(2))
    return (u * (r * eco_a - 1.0) + 2.0) * rel_pos
