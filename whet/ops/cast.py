"""Cast: another dtype, by value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import ml_dtypes
import numpy as np

from whet.errors import InvalidInput
from whet.ir.graph import Op, Value, operator
from whet.ir.types import FLOATS, INTEGERS, NUMPY_DTYPES, TensorType

PACKED_BITS = {"int2": 2, "uint2": 2, "int4": 4, "uint4": 4, "float4_e2m1fn": 4}


FEW_BITS = frozenset(PACKED_BITS) | {n for n in NUMPY_DTYPES if n.startswith("float8")}


def bit_width(dtype: str) -> int:
    """The bits of one element; NumPy gives those of less than a byte a byte of their own."""
    return PACKED_BITS.get(dtype) or NUMPY_DTYPES[dtype].itemsize * 8


@operator
class Cast(Op):
    """To another dtype by value: to integers toward zero, to narrower floats by rounding to even.

    `saturate`: what an 8-bit float cannot hold becomes its greatest value, else NaN or infinity.
    `round_mode` is for float8_e8m0fnu: "up" (away from zero), "down", "nearest" (ties up).
    """

    to: str
    saturate: bool = True
    round_mode: Annotated[str, Literal["up", "down", "nearest"]] = "up"
    computes_sizes: ClassVar[bool] = True

    def infer(self, x: TensorType) -> TensorType:
        return x.with_dtype(self.to)

    def reference(self, x: np.ndarray) -> np.ndarray:
        # Symbolic sizes stay what they are among integers; as floats they fail as Undecided.
        if x.dtype == object and not _is_text(x):
            if self.to in INTEGERS:
                return x
            x = x.astype(np.int64)
        return cast(x, self.to, self.saturate, self.round_mode)

    def lower(self, x: Value) -> Value:
        """Through wider dtypes and bits, where one of 8 bits or fewer takes part."""
        from whet.ops.bits import decoded, encoded  # which are made of casts and elementwise work

        if x.dtype == self.to or "string" in (x.dtype, self.to):
            return self(x)
        if x.dtype in FEW_BITS:
            return self(decoded(x))
        if self.to in FEW_BITS:
            return encoded(x, self.to, self.saturate, self.round_mode)
        return self(x)


def _is_text(x: np.ndarray) -> bool:
    return x.dtype == object and any(isinstance(s, str) for s in x.flat)


def cast(x: np.ndarray, to: str, saturate: bool = True, round_mode: str = "up") -> np.ndarray:
    """x in the dtype called `to`, by the rules of ONNX's Cast."""
    with np.errstate(all="ignore"):
        if to == "string":
            return x if x.dtype == object else _each(_to_text, x, object)
        if _is_text(x):
            return _from_text(x, to)
        if to == "float8_e8m0fnu":
            return _to_power_of_two(x, saturate, round_mode)
        if x.dtype == np.float64 and to in FLOATS and NUMPY_DTYPES[to].itemsize < 4:
            x = _rounded_to_odd(x) if to != "float16" else x
        if to.startswith("float8") and saturate:
            return _saturated(x, to)
        if to in PACKED_BITS and to in INTEGERS:
            return _wrapped(x, to)
        if to in INTEGERS or to == "bool":
            x = x.astype(np.float32) if _is_extension(x) else x
        return x.astype(NUMPY_DTYPES[to])


def _each(convert: Callable[[Any], Any], x: np.ndarray, dtype: Any) -> np.ndarray:
    return np.array([convert(e) for e in x.ravel()], dtype).reshape(x.shape)


def _is_extension(x: np.ndarray) -> bool:
    return x.dtype != object and x.dtype.isbuiltin != 1


def _to_text(x: Any) -> str:
    special = {"nan": "NaN", "inf": "INF", "-inf": "-INF"}
    text = str(x)
    return special.get(text, text)


def _from_text(x: np.ndarray, to: str) -> np.ndarray:
    try:
        if to in INTEGERS:
            return cast(_each(_integer, x, np.int64), to)
        return cast(_each(float, x, np.float64), to)
    except (ValueError, OverflowError) as error:
        raise InvalidInput(f"a string that is no number cannot be cast to {to}: {error}") from None


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return int(float(text))


def _rounded_to_odd(x: np.ndarray) -> np.ndarray:
    """float64 as float32 such that rounding again rounds as once (Boldo and Melquiond 2008)."""
    near = x.astype(np.float32)
    wide = near.astype(np.float64)
    bits = near.view(np.uint32)
    cut = bits - (np.abs(wide) > np.abs(x))
    return np.where((wide == x) | np.isnan(x), bits, cut | 1).astype(np.uint32).view(np.float32)


def _saturated(x: np.ndarray, to: str) -> np.ndarray:
    limit = float(ml_dtypes.finfo(NUMPY_DTYPES[to]).max)
    wide = x.astype(np.float32)
    return np.where(np.isnan(wide), wide, np.clip(wide, -limit, limit)).astype(NUMPY_DTYPES[to])


def _wrapped(x: np.ndarray, to: str) -> np.ndarray:
    """x modulo 2**bits, as integers of less than a byte."""
    bits = PACKED_BITS[to]
    wide = (
        x
        if x.dtype.kind in "biu"
        else np.trunc(x if x.dtype == np.float64 else x.astype(np.float32))
    )
    low = wide.astype(np.int64) & ((1 << bits) - 1)
    if to.startswith("int"):
        low = np.where(low >= 1 << (bits - 1), low - (1 << bits), low)
    return low.astype(np.int8).astype(NUMPY_DTYPES[to])


def _to_power_of_two(x: np.ndarray, saturate: bool, round_mode: str) -> np.ndarray:
    """The exponent alone, biased by 127; 255 is NaN (OCP Microscaling Formats 1.0)."""
    wide = np.abs(x.astype(np.float64))
    fraction, exponent = np.frexp(wide)  # fraction in [0.5, 1)
    least = {"up": 0.5, "nearest": 0.75 - 2**-53, "down": 1.0}[round_mode]
    code = exponent - 1 + (fraction > least) + 127
    if saturate:
        code = np.where(wide == 0, 0, np.where(np.isinf(wide), 254, np.clip(code, 0, 254)))
    else:
        code = np.where((wide == 0) | np.isinf(wide) | (code < 0) | (code > 254), 255, code)
    code = np.where(np.isnan(wide), 255, code)
    return code.astype(np.uint8).view(NUMPY_DTYPES["float8_e8m0fnu"])
