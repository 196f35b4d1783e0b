"""The discrete Fourier transform, and how products of small matrices make it."""

from __future__ import annotations

import math

import numpy as np

from whet.errors import ShapeError
from whet.ir.graph import Op, Value, constant, operator
from whet.ir.sizes import Size, floor_divide, is_less, maximum
from whet.ir.types import TensorType
from whet.ops.contract import MatMul
from whet.ops.index import as_int
from whet.ops.movement import Concat, Pad, reshape, slice_axis, transpose
from whet.ops.reduce import narrowed, widened

DENSE = 64  # a transform of this length or less is one matrix product
MOST_DENSE = 512  # up to this length also where the length is prime


@operator
class Fourier(Op):
    """The discrete Fourier transform of x[..., N, 1 or 2] over the last axis but one.

    The last axis holds real and imaginary part, or the real part alone. The signal is cut or
    filled with zeros to `length`. `onesided` gives the first length // 2 + 1 results of a real
    signal; of an inverse transform it takes those and gives `length` real numbers. The inverse
    divides by the length.
    """

    length: Size
    inverse: bool = False
    onesided: bool = False

    def infer(self, x: TensorType) -> TensorType:
        if x.rank < 2 or (isinstance(x.shape[-1], int) and x.shape[-1] not in (1, 2)):
            raise ShapeError(f"the last axis of {x} must hold real and imaginary part")
        count = self.length
        if self.onesided and not self.inverse:
            count = floor_divide(self.length, 2) + 1
        parts = 1 if self.onesided and self.inverse else 2
        return x.with_shape(*x.shape[:-2], count, parts)

    def reference(self, x: np.ndarray) -> np.ndarray:
        wide, length = x.astype(np.float64), as_int(self.length)
        signal = wide[..., 0] + (1j * wide[..., 1] if x.shape[-1] == 2 else 0)
        if self.onesided and self.inverse:
            return np.fft.irfft(signal, length)[..., None].astype(x.dtype)
        if self.onesided:
            result = np.fft.rfft(signal.real, length)
        else:
            result = (np.fft.ifft if self.inverse else np.fft.fft)(signal, length)
        return np.stack([result.real, result.imag], -1).astype(x.dtype)

    def lower(self, x: Value) -> Value:
        n = self.length
        if not isinstance(n, int) or not isinstance(x.shape[-1], int):
            return self(x)
        wide = widened(x)
        if self.onesided and self.inverse:
            wide = _mirrored(fitted(wide, n // 2 + 1), n)
        wide = fitted(wide, n)
        count = n // 2 + 1 if self.onesided and not self.inverse else n
        y = transform(wide, 1 if self.inverse else -1, count)
        y = y * (1 / n) if self.inverse else y
        return narrowed(slice_axis(y, -1, 0, 1) if self.onesided and self.inverse else y, x)


def fitted(x: Value, length: Size) -> Value:
    """x with its last axis but one cut or filled with zeros to the length."""
    axis, size = x.rank - 2, x.shape[-2]
    if size == length:
        return x
    missing = maximum(length - size, 0)
    if not is_less(length, size + 1):
        after = tuple(missing if i == axis else 0 for i in range(x.rank))
        x = Pad((0,) * x.rank, after)(x, constant(0, x.dtype))
    return slice_axis(x, axis, 0, length)


def _mirrored(x: Value, n: int) -> Value:
    """The whole spectrum of a real signal of n elements from its first n // 2 + 1."""
    half = n // 2 + 1
    if n - half <= 0:
        return x
    tail = slice_axis(x, x.rank - 2, n - half, n - half, -1)
    sign = constant([1.0, -1.0] if x.shape[-1] == 2 else [1.0], x.dtype)
    return Concat(x.rank - 2)(x, tail * sign)


def transform(x: Value, sign: int, count: int) -> Value:
    """The first `count` results k of sum over j of x[..., j, :] * exp(sign * 2*pi*i * j*k / n)."""
    n = x.shape[-2]
    assert isinstance(n, int)
    first = _divisor(n)
    if n <= DENSE or (first == n and n <= MOST_DENSE):
        return _dense(x, sign, n, count)
    if first == n:
        return slice_axis(_chirp(x, sign, n), x.rank - 2, 0, count)
    return slice_axis(_split(x, sign, first, n // first), x.rank - 2, 0, count)


def _divisor(n: int) -> int:
    """The divisor nearest to sqrt(n) from above; n itself where n is prime."""
    return next((d for d in range(math.isqrt(n - 1) + 1, n) if n % d == 0), n) if n > 1 else 1


def _dense(x: Value, sign: int, n: int, count: int) -> Value:
    """One product with the matrix of all the roots of unity."""
    angle = sign * 2 * np.pi / n * (np.outer(np.arange(n), np.arange(count)) % n)
    real, imaginary = np.cos(angle), np.sin(angle)
    rows = [np.stack([real, imaginary], -1), np.stack([-imaginary, real], -1)]
    parts = x.shape[-1]
    assert isinstance(parts, int)
    matrix = np.stack(rows[:parts], 1).reshape(n * parts, count * 2)
    y = MatMul()(reshape(x, *x.shape[:-2], 1, n * parts), constant(matrix, x.dtype))
    return reshape(y, *x.shape[:-2], count, 2)


def _split(x: Value, sign: int, a: int, b: int) -> Value:
    """A transform of length a*b as ones of length a and of length b (Cooley and Tukey 1965)."""
    lead, rank = x.shape[:-2], x.rank + 1
    swap = (*range(rank - 3), rank - 2, rank - 3, rank - 1)
    # Element j = b * j1 + j2; result k = k1 + a * k2.
    columns = transpose(reshape(x, *lead, a, b, x.shape[-1]), *swap)
    inner = transform(columns, sign, a)
    angle = sign * 2 * np.pi / (a * b) * np.outer(np.arange(b), np.arange(a))
    inner = transpose(times(inner, np.cos(angle), np.sin(angle)), *swap)
    outer = transpose(transform(inner, sign, b), *swap)
    return reshape(outer, *lead, a * b, 2)


def times(x: Value, real: np.ndarray, imaginary: np.ndarray) -> Value:
    """The complex x[..., 2] times complex constants."""
    a, b = slice_axis(x, -1, 0, 1), slice_axis(x, -1, 1, 1)
    c, d = (constant(part[..., None], x.dtype) for part in (real, imaginary))
    return Concat(x.rank - 1)(a * c - b * d, a * d + b * c)


def _chirp(x: Value, sign: int, n: int) -> Value:
    """A transform of prime length as a convolution of a handier length (Bluestein 1970)."""
    size = 1 << (2 * n - 2).bit_length()
    squares = np.arange(n, dtype=np.int64) ** 2 % (2 * n)
    phase = sign * np.pi / n * squares
    if x.shape[-1] == 1:
        x = Concat(x.rank - 1)(x, x * 0.0)
    turned = fitted(times(x, np.cos(phase), np.sin(phase)), size)
    kernel = np.zeros(size, complex)
    kernel[:n] = np.exp(-1j * phase)
    kernel[size - n + 1 :] = kernel[1:n][::-1]
    filter = np.fft.fft(kernel) / size
    spectrum = times(transform(turned, -1, size), filter.real, filter.imag)
    y = slice_axis(transform(spectrum, 1, size), x.rank - 2, 0, n)
    return times(y, np.cos(phase), np.sin(phase))
