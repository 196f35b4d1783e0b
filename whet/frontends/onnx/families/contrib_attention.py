"""com.microsoft operators of transformers: attention, caches, embeddings, positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from whet.frontends.onnx.families.attention import scaled_query
from whet.frontends.onnx.families.matmul import matmul
from whet.frontends.onnx.registry import Refused, contrib_op
from whet.ir.graph import Value, constant
from whet.ir.sizes import Size, floor_divide, is_different
from whet.ops.attention import Attention as Attend
from whet.ops.attention import merge_heads, split_heads
from whet.ops.elementwise import (
    And,
    Cast,
    Equal,
    Less,
    LessOrEqual,
    Where,
    require_equal,
)
from whet.ops.index import positions
from whet.ops.movement import (
    Concat,
    Gather,
    broadcast_to,
    reshape,
    slice_axis,
    split,
    transpose,
    unsqueeze,
)
from whet.ops.reduce import LayerNorm, Reduce, narrowed, widened

if TYPE_CHECKING:
    from whet.frontends.onnx.reading import Reading


@contrib_op
def Attention(
    x: Value,
    weights: Value,
    bias: Value | None = None,
    mask_index: Value | None = None,
    past: Value | None = None,
    attention_bias: Value | None = None,
    past_sequence_length: Value | None = None,
    *,
    do_rotary: int = 0,
    mask_filter_value: float = -10000.0,
    num_heads: int,
    past_present_share_buffer: int = 0,
    qkv_hidden_sizes: tuple[int, ...] | None = None,
    rotary_embedding_dim: int = 0,
    scale: float = 0.0,
    unidirectional: int = 0,
) -> tuple[Value, Value]:
    if past_present_share_buffer or do_rotary:
        raise Refused("past_present_share_buffer and do_rotary are only known to CUDA kernels")
    packed = matmul(x, weights)
    packed = packed if bias is None else packed + bias
    width = floor_divide(packed.shape[2], 3)
    q, k, v = split(packed, tuple(qkv_hidden_sizes or (width,) * 3), 2)
    return attend_packed(
        (q, k, v),
        mask_index,
        past,
        attention_bias,
        num_heads,
        mask_filter_value,
        scale,
        unidirectional,
    )


def attend_packed(
    projected: tuple[Value, Value, Value],
    mask_index: Value | None,
    past: Value | None,
    attention_bias: Value | None,
    heads: int,
    filler: float,
    scale: float,
    unidirectional: int,
) -> tuple[Value, Value]:
    """The output and the present state of an attention whose past joins keys and values."""
    q, k, v = (split_heads(x, heads) for x in projected)
    offset: Size = 0
    if past is not None:
        offset = past.shape[3]
        old = (reshape(slice_axis(past, 0, i, 1), *past.shape[1:]) for i in range(2))
        k, v = (Concat(2)(o, new) for o, new in zip(old, (k, v)))
    mask = index_mask(mask_index, q, k.shape[2], offset, filler)
    y = attend(q, k, v, _sum(mask, attention_bias), scale, bool(unidirectional), offset)
    if k.shape == v.shape:
        return y, Concat(0)(unsqueeze(k, 0), unsqueeze(v, 0))
    return y, k


def attend(
    q: Value, k: Value, v: Value, mask: Value | None, scale: float, causal: bool, offset: Size
) -> Value:
    """Attention of heads [B, H, S, D], joined to [B, S, H*D]; scale 0 stands for 1/sqrt(D)."""
    if scale == 0.0:
        q, scale = scaled_query(q)
    return merge_heads(Attend(scale, right=0 if causal else None, offset=offset)(q, k, v, mask))


def _sum(a: Value | None, b: Value | None) -> Value | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b


def index_mask(
    mask: Value | None, q: Value, keys: Size, offset: Size, filler: float
) -> Value | None:
    """What to add to the scores of q[B, H, S, D] for ONNX Runtime's mask_index, in any form."""
    if mask is None:
        return None
    if mask.rank == 1:
        seen = _within_lengths(mask, q.shape[0], keys)
    elif mask.rank == 2:
        seen = unsqueeze(_is_set(mask), 1, 2)
    elif mask.rank == 3:
        seen = unsqueeze(_is_set(mask), 1)
    elif mask.rank == 4:
        rows = slice_axis(mask, 2, offset, q.shape[2])
        seen = _is_set(slice_axis(rows, 3, 0, keys))
    else:
        raise Refused(f"a mask of {mask.rank} axes is none that ONNX Runtime knows")
    return Where()(seen, constant(0.0, q.dtype), constant(filler, q.dtype))


def _is_set(mask: Value) -> Value:
    return Less()(constant(0, mask.dtype), mask)


def _within_lengths(mask: Value, batch: Size, keys: Size) -> Value:
    """Whether each key stands before its sequence's end, and not before its start where given.

    The vector holds B ends, or B ends followed by B starts; the result is [B, 1, 1, T].
    """
    key = positions(keys, 4, 3)
    wide = Cast("int64")(mask)
    inside = Less()(key, reshape(slice_axis(wide, 0, 0, batch), batch, 1, 1, 1))
    if mask.shape[0] != 2 * batch:
        if is_different(mask.shape[0], batch):
            raise Refused(f"a mask of {mask.shape[0]} numbers for {batch} sequences is only CUDA's")
        require_equal(mask.shape[0], batch, "the ends in mask_index and the sequences")
        return inside
    start = reshape(slice_axis(wide, 0, batch, batch), batch, 1, 1, 1)
    return And()(inside, LessOrEqual()(start, key))


@contrib_op
def MultiHeadAttention(
    query: Value,
    key: Value | None = None,
    value: Value | None = None,
    bias: Value | None = None,
    key_padding_mask: Value | None = None,
    attention_bias: Value | None = None,
    past_key: Value | None = None,
    past_value: Value | None = None,
    past_sequence_length: Value | None = None,
    cache_indirection: Value | None = None,
    *,
    mask_filter_value: float = -10000.0,
    num_heads: int,
    scale: float = 0.0,
    unidirectional: int = 0,
    node: Reading,
) -> tuple[Value | None, ...]:
    if past_sequence_length is not None or cache_indirection is not None:
        raise Refused("past_sequence_length and cache_indirection are only known to CUDA kernels")
    q, k, v = projected_heads(query, key, value, bias, num_heads)
    offset: Size = 0
    if past_key is not None and past_value is not None:
        offset = past_key.shape[2]
        k, v = Concat(2)(past_key, k), Concat(2)(past_value, v)
    mask = index_mask(key_padding_mask, q, k.shape[2], offset, mask_filter_value)
    mask = _sum(mask, attention_bias)
    y = attend(q, k, v, mask, scale, bool(unidirectional), offset)
    return y, k, v, _products(q, k, mask, scale, unidirectional, offset, node)


def _products(
    q: Value, k: Value, mask: Value | None, scale: float, causal: int, offset: Size, node: Reading
) -> Value | None:
    """The masked scores, where the model reads them."""
    if not node.wanted(3):
        return None
    if scale == 0.0:
        q, scale = scaled_query(q)
    op = Attend(scale, right=0 if causal else None, offset=offset)
    return narrowed(op.masked(op.scores(q, k), mask), q)


def projected_heads(
    query: Value, key: Value | None, value: Value | None, bias: Value | None, heads: int
) -> tuple[Value, Value, Value]:
    """q, k and v as [B, H, S, D] from any of MultiHeadAttention's packings, with their biases."""
    if query.rank == 5:
        parts = _unpacked(query, 3)
    elif key is None:
        raise Refused("a query of three axes needs a key")
    elif key.rank == 5:
        parts = [by_head(query, heads), *_unpacked(key, 2)]
    elif value is None:
        raise Refused("a key that is not packed needs a value")
    else:
        parts = [x if x.rank == 4 else by_head(x, heads) for x in (query, key, value)]
        if key.rank == 4:
            # Keys and values of four axes are finished caches [B, H, L, D].
            q = _with_bias(parts[0], bias, 0)
            return transpose(q, 0, 2, 1, 3), parts[1], parts[2]
    start: Size = 0
    for i, part in enumerate(parts):
        parts[i] = _with_bias(part, bias, start)
        start = start + part.shape[2] * part.shape[3]
    q, k, v = (transpose(p, 0, 2, 1, 3) for p in parts)
    return q, k, v


def by_head(x: Value, heads: Size) -> Value:
    """x[B, S, heads * D] as [B, S, heads, D]."""
    batch, length, hidden = x.shape
    return reshape(x, batch, length, heads, floor_divide(hidden, heads))


def _unpacked(x: Value, count: int) -> list[Value]:
    """x[B, S, heads, count, D] as `count` of [B, S, heads, D]."""
    batch, length, heads, _, size = x.shape
    return [reshape(slice_axis(x, 3, i, 1), batch, length, heads, size) for i in range(count)]


def _with_bias(x: Value, bias: Value | None, start: Size) -> Value:
    """x[B, S, H, D] plus the part of the bias that belongs to it."""
    if bias is None:
        return x
    heads, size = x.shape[2:]
    return x + reshape(slice_axis(bias, 0, start, heads * size), heads, size)


@contrib_op
def EmbedLayerNormalization(
    input_ids: Value,
    segment_ids: Value | None,
    word_embedding: Value,
    position_embedding: Value,
    segment_embedding: Value | None,
    gamma: Value,
    beta: Value,
    mask: Value | None = None,
    position_ids: Value | None = None,
    *,
    epsilon: float = 1e-12,
    mask_index_type: int = 1,
) -> tuple[Value, Value, Value]:
    batch, length = input_ids.shape
    total = widened(Gather(0)(word_embedding, input_ids))
    if position_ids is None:
        total = total + widened(slice_axis(position_embedding, 0, 0, length))
    else:
        total = total + widened(Gather(0)(position_embedding, position_ids))
    if segment_embedding is not None and segment_ids is not None:
        total = total + widened(Gather(0)(segment_embedding, segment_ids))
    total = narrowed(total, word_embedding)
    y = LayerNorm(1, epsilon)(total, gamma, beta)
    if mask is None:
        return y, broadcast_to(constant(0, "int32"), batch), total
    ones = Cast("int32")(Equal()(mask, constant(1, mask.dtype)))
    return y, reshape(Reduce("sum", (1,))(ones), batch), total
