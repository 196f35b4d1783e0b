"""ONNX attention: scaled dot products with masks and caches, linear attention, rotary positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from whet.frontends.onnx.registry import Refused, onnx_op, preview_op
from whet.frontends.onnx.windows import channels_first, channels_last
from whet.ir.graph import Value, constant
from whet.ir.sizes import Size, floor_divide, is_less
from whet.ops.attention import (
    Attention as Attend,
)
from whet.ops.attention import (
    masked_softmax,
    merge_heads,
    rotate,
    split_heads,
    weigh,
    window,
)
from whet.ops.contract import Convolution
from whet.ops.elementwise import Cast, Less, Silu, Sqrt, Tanh, Where
from whet.ops.index import number, positions
from whet.ops.linear_attention import LinearAttention as StateAttention
from whet.ops.movement import Concat, Gather, Pad, broadcast_to, reshape, slice_axis, unsqueeze
from whet.ops.reduce import Softmax, narrowed, widened

if TYPE_CHECKING:
    from whet.frontends.onnx.model import Body
    from whet.frontends.onnx.reading import Reading


@onnx_op
def Attention_23(
    q: Value,
    k: Value,
    v: Value,
    attn_mask: Value | None = None,
    past_key: Value | None = None,
    past_value: Value | None = None,
    nonpad_kv_seqlen: Value | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int = 0,
    left_window_size: int = -1,
    q_num_heads: int = 0,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
    node: Reading,
) -> tuple[Value | None, ...]:
    flat = q.rank == 3
    if flat:
        q = split_heads(q, q_num_heads)
        k, v = split_heads(k, kv_num_heads), split_heads(v, kv_num_heads)
    offset: Size = 0 if past_key is None else past_key.shape[2]
    if past_key is not None and past_value is not None:
        k, v = Concat(2)(past_key, k), Concat(2)(past_value, v)

    left = left_window_size if left_window_size >= 0 else None
    right = 0 if is_causal else right_window_size if right_window_size >= 0 else None
    mask = None if attn_mask is None else additive(_padded(attn_mask, k.shape[2]), q.dtype)
    if nonpad_kv_seqlen is not None:
        hidden = _hidden_beyond(nonpad_kv_seqlen, q.shape[2], k.shape[2], left, right, q.dtype)
        mask = hidden if mask is None else mask + hidden
        left = right = None

    if scale is None:
        q, scale = scaled_query(q)
    op = Attend(scale, softcap, left, right, offset)
    if node.wanted(3):
        y, products = _with_products(op, q, k, v, mask, qk_matmul_output_mode)
    else:
        y, products = op(q, k, v, mask), None
    return merge_heads(y) if flat else y, k, v, products


def scaled_query(q: Value) -> tuple[Value, float]:
    """1 / sqrt(head size) as the scale, or multiplied into q where the head size is not known."""
    if isinstance(q.shape[3], int):
        return q, 1 / float(np.sqrt(q.shape[3]))
    return narrowed(widened(q) / Sqrt()(number(q.shape[3], widened(q).dtype)), q), 1.0


def additive(mask: Value, dtype: str) -> Value:
    """A mask to add to scores: 0 where a bool one is true, -inf where it is false."""
    if mask.dtype != "bool":
        return mask
    return Where()(mask, constant(0.0, dtype), constant(-np.inf, dtype))


def _padded(mask: Value, keys: Size) -> Value:
    """The mask with its last axis as long as the keys: what is missing is hidden."""
    missing = keys - mask.shape[-1]
    if mask.shape[-1] == 1 or missing == 0:
        return mask
    if not is_less(-1, missing) or is_less(missing, 1):
        return mask
    hidden = False if mask.dtype == "bool" else -np.inf
    before = (0,) * mask.rank
    return Pad(before, (*before[1:], missing))(mask, constant(hidden, mask.dtype))


def _hidden_beyond(
    lengths: Value, queries: Size, keys: Size, left: int | None, right: int | None, dtype: str
) -> Value:
    """A mask [B, 1, S or 1, T] that hides keys at and beyond lengths[B], and outside the window."""
    lengths = reshape(Cast("int64")(lengths), lengths.shape[0], 1, 1, 1)
    key = positions(keys, 4, 3)
    mask = additive(Less()(key, lengths), dtype)
    if left is None and right is None:
        return mask
    # The queries are the last of the keys that count.
    position = positions(queries, 4, 2) + (lengths - number(queries, "int64"))
    return mask + additive(window(position, key, left, right), dtype)


def _with_products(
    op: Attend, q: Value, k: Value, v: Value, mask: Value | None, mode: int
) -> tuple[Value, Value]:
    """The result, and what ONNX's qk_matmul_output_mode asks for on the way to it."""
    raw = op.scores(q, k)
    capped = Tanh()(raw / op.softcap) * op.softcap if op.softcap > 0 else raw
    masked = op.masked(raw, mask)
    probabilities = masked_softmax(masked)
    if mode not in (0, 1, 2, 3):
        raise Refused(f"qk_matmul_output_mode {mode} is none of 0, 1, 2, 3")
    products = (raw, capped, masked, probabilities)[mode]
    return narrowed(weigh(probabilities, v), q), narrowed(products, q)


@preview_op
def FlexAttention(
    q: Value,
    k: Value,
    v: Value,
    *,
    prob_mod: Body | None = None,
    scale: float | None = None,
    score_mod: Body | None = None,
    softmax_precision: int | None = None,
    node: Reading,
) -> Value:
    if scale is None:
        q, scale = scaled_query(q)
    op = Attend(scale)
    if score_mod is None and prob_mod is None:
        return op(q, k, v)
    wide = "float64" if softmax_precision == 11 else widened(q).dtype
    scores = Cast(wide)(op.scores(q, k)) if wide != widened(q).dtype else op.scores(q, k)
    scores = scores if score_mod is None else node.inline(score_mod, [scores])[0]
    probabilities = Softmax(3)(scores)
    if prob_mod is not None:
        probabilities = node.inline(prob_mod, [probabilities])[0]
    return narrowed(weigh(probabilities, v), v)


@onnx_op
def RotaryEmbedding_23(
    x: Value,
    cos_cache: Value,
    sin_cache: Value,
    position_ids: Value | None = None,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Value:
    if position_ids is not None:
        cos_cache, sin_cache = (Gather(0)(c, position_ids) for c in (cos_cache, sin_cache))
    if x.rank == 4:
        cos_cache, sin_cache = (unsqueeze(c, 1) for c in (cos_cache, sin_cache))
        return narrowed(_rotated(x, cos_cache, sin_cache, bool(interleaved)), x)
    batch, length, hidden = x.shape
    heads = reshape(x, batch, length, num_heads, floor_divide(hidden, num_heads))
    cos_cache, sin_cache = (unsqueeze(c, 2) for c in (cos_cache, sin_cache))
    return reshape(_rotated(heads, cos_cache, sin_cache, bool(interleaved)), *x.shape)


def _rotated(x: Value, cosine: Value, sine: Value, interleaved: bool) -> Value:
    return narrowed(rotate(widened(x), widened(cosine), widened(sine), interleaved), x)


@onnx_op
def LinearAttention(
    q: Value,
    k: Value,
    v: Value,
    past_state: Value | None = None,
    decay: Value | None = None,
    beta: Value | None = None,
    *,
    chunk_size: int = 64,
    kv_num_heads: int,
    q_num_heads: int,
    scale: float = 0.0,
    update_rule: str = "gated_delta",
) -> tuple[Value, Value]:
    if update_rule not in ("linear", "gated", "delta", "gated_delta"):
        raise Refused(f"update_rule {update_rule!r} is not known")
    heads = split_heads(q, q_num_heads), split_heads(k, kv_num_heads), split_heads(v, kv_num_heads)
    key_size, value_size = heads[0].shape[3], heads[2].shape[3]
    if scale == 0.0:
        if not isinstance(key_size, int):
            raise Refused("the head size is not known, and no scale is given")
        scale = 1 / float(np.sqrt(key_size))
    decay = decay if "gated" in update_rule else None
    beta = beta if "delta" in update_rule else None
    decay = None if decay is None else split_heads(decay, kv_num_heads)
    beta = None if beta is None else split_heads(beta, beta.shape[2])
    if past_state is None:
        shape = (q.shape[0], kv_num_heads, key_size, value_size)
        past_state = broadcast_to(constant(0, q.dtype), *shape)
    y, state = StateAttention(scale)(*heads, past_state, decay, beta)
    return merge_heads(y), state


@onnx_op
def CausalConvWithState(
    x: Value,
    w: Value,
    b: Value | None = None,
    past_state: Value | None = None,
    *,
    activation: str = "none",
) -> tuple[Value, Value]:
    if activation not in ("none", "silu", "swish"):
        raise Refused(f"activation {activation!r} is none of none, silu, swish")
    batch, channels = x.shape[:2]
    before = w.shape[2] - 1
    if past_state is None:
        past_state = broadcast_to(constant(0, x.dtype), batch, channels, before)
    padded = Concat(2)(past_state, x)
    # One filter for each channel: the number of groups is a size that must be known.
    if not isinstance(w.shape[0], int):
        raise Refused("the number of channels is not known")
    op = Convolution((1,), (1,), (0,), (0,), w.shape[0])
    y = op(channels_last(padded), channels_last(w))
    y = y if b is None else y + b
    y = y if activation == "none" else Silu()(y)
    return channels_first(y), slice_axis(padded, 2, x.shape[2], before)
