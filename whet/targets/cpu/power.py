"""Powers of float32 vectors, computed in double precision."""

from __future__ import annotations

import math
import re
import struct
from functools import cache

import numpy as np

from whet.targets.cpu.functions import clamp, fit, horner
from whet.targets.cpu.llvm import Function, literal, split_type, vector


def by_literal(f: Function, type: str, x: str, exponent: str) -> str | None:
    """x to a power that is a simple number, in a few instructions; None for other exponents."""
    match _value(exponent):
        case 0.0:
            return literal(type, 1.0)
        case 1.0:
            return x
        case 2.0:
            return f.binary("fmul", type, x, x)
        case 3.0:
            return f.binary("fmul", type, f.binary("fmul", type, x, x), x)
        case -1.0:
            return f.binary("fdiv", type, literal(type, 1.0), x)
        case 0.5:
            return _root(f, type, x)
        case -0.5:
            return f.binary("fdiv", type, literal(type, 1.0), _root(f, type, x))
    return None


def _value(text: str) -> float | None:
    """The number that a literal or a splat of one says."""
    found = re.fullmatch(r"(?:splat \((?:float|double) )?0x([0-9A-F]{16})\)?", text)
    return struct.unpack(">d", bytes.fromhex(found[1]))[0] if found else None


def _root(f: Function, type: str, x: str) -> str:
    """x**0.5, which unlike a square root is 0 for -0 and infinite for -infinity."""
    root = f.intrinsic("llvm.sqrt", type, f.binary("fadd", type, x, literal(type, 0.0)))
    least = f.compare("oeq", type, x, literal(type, -math.inf))
    return f.select(least, type, literal(type, math.inf), root)


@cache
def _coefficients() -> tuple[list[float], list[float]]:
    # log2(m) = s * p(s*s) where s = (m-1)/(m+1); 2**t = q(t) for |t| up to 1/2.
    def p(z: np.ndarray) -> np.ndarray:
        s = np.sqrt(np.maximum(z, 1e-12))
        return 2 * np.arctanh(s) / s / math.log(2)

    return fit(p, 0.0, 0.0296, 6), fit(np.exp2, -0.5, 0.5, 9)


def power(f: Function, type: str, x: str, y: str) -> str:
    """x**y of floats, as C's powf has it; in double precision, so that one rounding is left."""
    lanes = split_type(type)[1]
    wide, longs = vector("double", lanes), vector("i64", lanes)
    one, zero = literal(type, 1.0), literal(type, 0.0)
    size = f.intrinsic("llvm.fabs", type, x)
    logarithm = _log2(f, wide, longs, f.convert("fpext", size, type, wide))
    t = f.binary("fmul", wide, f.convert("fpext", y, type, wide), logarithm)
    value = f.convert("fptrunc", _exp2(f, wide, longs, t), wide, type)
    # 0 and infinity have no finite logarithm: they stay, or change places.
    up = f.compare("ogt", type, y, zero)
    edge = f.compare("oeq", type, size, zero)
    value = f.select(edge, type, f.select(up, type, zero, literal(type, math.inf)), value)
    edge = f.compare("oeq", type, size, literal(type, math.inf))
    value = f.select(edge, type, f.select(up, type, literal(type, math.inf), zero), value)
    value = f.select(f.compare("oeq", type, size, one), type, one, value)
    value = _signed(f, type, x, y, value)
    none = f.compare("uno", type, x, y)
    value = f.select(none, type, literal(type, math.nan), value)
    certain = f.binary(
        "or",
        vector("i1", lanes),
        f.compare("oeq", type, y, zero),
        f.compare("oeq", type, x, one),
    )
    return f.select(certain, type, one, value)


def _signed(f: Function, type: str, x: str, y: str, value: str) -> str:
    """The power of |x| with x's sign where y is odd; NaN of a negative x where y is no integer."""
    lanes = split_type(type)[1]
    ints, mask = vector("i32", lanes), vector("i1", lanes)
    half = f.binary("fmul", type, y, literal(type, 0.5))
    whole = f.compare("oeq", type, f.intrinsic("llvm.trunc", type, y), y)
    even = f.compare("oeq", type, f.intrinsic("llvm.trunc", type, half), half)
    odd = f.binary("and", mask, whole, f.binary("xor", mask, even, literal(mask, True)))
    bits = f.convert("bitcast", x, type, ints)
    sign = f.binary("and", ints, bits, literal(ints, -(2**31)))
    sign = f.select(odd, ints, sign, literal(ints, 0))
    signed = f.binary("or", ints, f.convert("bitcast", value, type, ints), sign)
    value = f.convert("bitcast", signed, ints, type)
    below = f.compare("olt", type, x, literal(type, 0.0))
    finite = f.compare("one", type, x, literal(type, -math.inf))
    fraction = f.binary("xor", mask, whole, literal(mask, True))
    none = f.binary("and", mask, f.binary("and", mask, below, finite), fraction)
    return f.select(none, type, literal(type, math.nan), value)


def _log2(f: Function, type: str, ints: str, x: str) -> str:
    """The binary logarithm of positive normal doubles."""
    bits = f.convert("bitcast", x, type, ints)
    # The exponent that leaves a mantissa between sqrt(1/2) and sqrt(2).
    shifted = f.binary("sub", ints, bits, literal(ints, 0x3FE6A09E667F3BCD))
    exponent = f.binary("ashr", ints, shifted, literal(ints, 52))
    rest = f.binary("sub", ints, bits, f.binary("shl", ints, exponent, literal(ints, 52)))
    m = f.convert("bitcast", rest, ints, type)
    lanes = split_type(type)[1]
    narrow = f.convert("trunc", exponent, ints, vector("i32", lanes))
    e = f.convert("sitofp", narrow, vector("i32", lanes), type)
    below, above = (f.binary("fadd", type, m, literal(type, c)) for c in (-1.0, 1.0))
    s = f.binary("fdiv", type, below, above)
    z = f.binary("fmul", type, s, s)
    return f.fma(type, s, horner(f, type, z, _coefficients()[0]), e)


def _exp2(f: Function, type: str, ints: str, t: str) -> str:
    """2**t as a double; infinite or 0 beyond what a float can be."""
    t = clamp(f, type, t, -200.0, 200.0)
    magic = literal(type, 1.5 * 2.0**52)
    shifted = f.binary("fadd", type, t, magic)
    rest = f.binary("fsub", type, t, f.binary("fsub", type, shifted, magic))
    value = horner(f, type, rest, _coefficients()[1])
    n = f.binary("shl", ints, f.convert("bitcast", shifted, type, ints), literal(ints, 52))
    bits = f.binary("add", ints, f.convert("bitcast", value, type, ints), n)
    return f.convert("bitcast", bits, ints, type)
