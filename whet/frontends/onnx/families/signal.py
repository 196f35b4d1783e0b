"""ONNX Fourier transforms, whole and of windows that slide along a signal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from whet.frontends.onnx.registry import Refused, contrib_op, onnx_op
from whet.ir.graph import Value
from whet.ir.sizes import Size, floor_divide
from whet.ops.index import number, positions
from whet.ops.movement import Gather, normalize_axis, reshape, squeeze, transpose, unsqueeze
from whet.ops.signal import Fourier

if TYPE_CHECKING:
    from whet.frontends.onnx.reading import Reading


@onnx_op
def DFT(
    x: Value,
    dft_length: Value | None = None,
    *,
    axis: int = 1,
    inverse: int = 0,
    onesided: int = 0,
    node: Reading,
) -> Value:
    return fourier(x, dft_length, axis, bool(inverse), bool(onesided), node)


@onnx_op
def DFT_20(
    x: Value,
    dft_length: Value | None = None,
    axis: Value | None = None,
    *,
    inverse: int = 0,
    onesided: int = 0,
    node: Reading,
) -> Value:
    over = -2 if axis is None else int(node.number(axis, "axis"))
    return fourier(x, dft_length, over, bool(inverse), bool(onesided), node)


def fourier(
    x: Value, length: Value | None, axis: int, inverse: bool, onesided: bool, node: Reading
) -> Value:
    """The transform over one axis of x[..., 1 or 2]."""
    axis = normalize_axis(axis, x.rank)
    if axis == x.rank - 1:
        raise Refused("the last axis holds real and imaginary part; it cannot be transformed")
    size = x.shape[axis]
    count: Size = 2 * (size - 1) if inverse and onesided else size
    if length is not None:
        count = node.number(length, "dft_length")
    order = (*(i for i in range(x.rank - 1) if i != axis), axis, x.rank - 1)
    y = Fourier(count, inverse, onesided)(transpose(x, *order))
    return transpose(y, *(order.index(i) for i in range(x.rank)))


@onnx_op
def STFT(
    signal: Value,
    frame_step: Value,
    window: Value | None = None,
    frame_length: Value | None = None,
    *,
    onesided: int = 1,
    node: Reading,
) -> Value:
    signal = signal if signal.rank == 3 else unsqueeze(signal, 2)
    step = node.number(frame_step, "frame_step")
    if frame_length is not None:
        length = node.number(frame_length, "frame_length")
    elif window is not None:
        length = window.shape[0]
    else:
        length = signal.shape[1]
    count = floor_divide(signal.shape[1] - length, step) + 1
    start = positions(count, 2, 0) * number(step, "int64")
    frames = Gather(1)(signal, start + positions(length, 2, 1))
    if window is not None:
        frames = frames * reshape(window, window.shape[0], 1)
    return Fourier(length, onesided=bool(onesided))(frames)


@contrib_op
def Rfft(x: Value, *, normalized: int = 0, onesided: int = 1, signal_ndim: int = 1) -> Value:
    _check(normalized, onesided, signal_ndim)
    return Fourier(x.shape[-1], onesided=True)(unsqueeze(x, x.rank))


@contrib_op
def Irfft(x: Value, *, normalized: int = 0, onesided: int = 1, signal_ndim: int = 1) -> Value:
    _check(normalized, onesided, signal_ndim)
    return squeeze(Fourier(2 * (x.shape[-2] - 1), inverse=True, onesided=True)(x), -1)


def _check(normalized: int, onesided: int, signal_ndim: int) -> None:
    if normalized or not onesided or signal_ndim != 1:
        raise Refused("only one-sided transforms of one axis without normalisation are defined")
