"""Convolutions of few channels, a network's first one, so that memory is read in wide pieces.

Zeros fill channels, columns and taps up, once for all places. Then no column lies outside, and all
taps of a line of the filter are neighbours in memory: they are read as if they were channels.
"""

from __future__ import annotations

from whet.ir.graph import Value, constant
from whet.ir.sizes import bounds, product
from whet.ops.contract import Convolution
from whet.ops.movement import Pad
from whet.targets.cuda.templates.contraction import integer

MOST_CHANNELS = 4
ALIGNED = 8  # 16-bit numbers that one load reads
LINE = 32  # the least depth of a step
FEWEST_PLACES = 1 << 10  # of the result: with fewer, the pass over x costs more than it saves
FEWEST_TAPS = 5  # in a line: with fewer, zeros are most of what is read


def in_wide_lines(op: Convolution, x: Value, w: Value, y: Value) -> Value | None:
    """The same convolution with whole lines of taps; None where that gains nothing."""
    if not isinstance(x.shape[-2], int):
        return None
    channels, width, taps = (integer(n) for n in (x.shape[-1], x.shape[-2], w.shape[-2]))
    stride, places = op.strides[-1], bounds(product(y.shape[:-1]))[0]
    if channels > MOST_CHANNELS or op.groups > 1 or op.dilations[-1] > 1 or taps < FEWEST_TAPS:
        return None
    if y.dtype not in ("float16", "bfloat16") or places < FEWEST_PLACES:
        return None
    wide = MOST_CHANNELS if stride % 2 == 0 else ALIGNED
    line = -(-taps * wide // LINE) * LINE // wide
    before = integer(op.before[-1])
    reached = (integer(y.shape[-2]) - 1) * stride + line
    after = max(0, reached - before - width)
    after += -(before + width + after) % (ALIGNED // wide)  # every line of x begins aligned
    if (before, after, line, wide) == (0, 0, taps, channels):
        return None  # it is that already
    x = _with_zeros(x, before, after, wide - channels)
    w = _with_zeros(w, 0, line - taps, wide - channels)
    # Columns behind the last window are no window's beginning.
    spare = (before + width + after - line) // stride + 1 - integer(y.shape[-2])
    if spare:
        return None
    result: Value = Convolution(
        op.strides, op.dilations, (*op.before[:-1], 0), (*op.after[:-1], 0)
    )(x, w)
    return result


def _with_zeros(value: Value, before: int, after: int, channels: int) -> Value:
    """Zeros before and after the last axis but one, and behind the last one."""
    rest = (0,) * (value.rank - 2)
    pad = Pad((*rest, before, 0), (*rest, after, channels))
    padded: Value = pad(value, constant(0.0, value.dtype))
    return padded
