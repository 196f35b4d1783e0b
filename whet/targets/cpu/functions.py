"""Elementary functions of float32 vectors, from additions and multiplications.

Each is a range reduction and a polynomial, fitted here by Chebyshev interpolation in double precision
(Trefethen, Approximation Theory and Approximation Practice, 2013). Errors are below 2 units in the last place,
of erf below 1e-7.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from whet.targets.cpu.llvm import Function, literal, split_type, vector


def fit(function: Callable[[np.ndarray], np.ndarray], low: float, high: float, degree: int) -> list[float]:
    """Coefficients, constant first, of the polynomial that meets the function at the Chebyshev points."""
    nodes = np.cos((np.arange(degree + 1) + 0.5) / (degree + 1) * np.pi)
    x = (high - low) / 2 * nodes + (high + low) / 2
    series = np.polynomial.Chebyshev.fit(x, function(x), degree, domain=[low, high])
    return [float(c) for c in series.convert(kind=np.polynomial.Polynomial).coef]


def horner(f: Function, type: str, x: str, coefficients: Sequence[float]) -> str:
    """The polynomial's value at x."""
    total = literal(type, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = f.fma(type, total, x, literal(type, c))
    return total


def _integer(type: str) -> str:
    return vector("i32", split_type(type)[1])


def clamp(f: Function, type: str, x: str, low: float, high: float) -> str:
    """x between the bounds; NaN stays NaN."""
    over = f.compare("ogt", type, x, literal(type, high))
    x = f.select(over, type, literal(type, high), x)
    under = f.compare("olt", type, x, literal(type, low))
    return f.select(under, type, literal(type, low), x)


def round_to_int(f: Function, type: str, x: str) -> tuple[str, str]:
    """The nearest integer of a small x, as a float and as an i32: by adding and taking away 1.5 * 2**23."""
    magic = literal(type, 12582912.0)
    shifted = f.binary("fadd", type, x, magic)
    number = f.binary("fsub", type, shifted, magic)
    bits = f.convert("bitcast", shifted, type, _integer(type))
    return number, f.binary("sub", _integer(type), bits, literal(_integer(type), 0x4B400000))


def power_of_two(f: Function, type: str, n: str) -> str:
    """2**n of an i32 between -126 and 127."""
    ints = _integer(type)
    biased = f.binary("add", ints, n, literal(ints, 127))
    return f.convert("bitcast", f.binary("shl", ints, biased, literal(ints, 23)), ints, type)


_LOG2_HIGH = 0.693359375  # ln 2 in nine bits: its products with small integers are exact


@cache
def _exp_coefficients() -> list[float]:
    # exp(r) = 1 + r + r*r*p(r), so that the leading terms are exact.
    def p(r: np.ndarray) -> np.ndarray:
        return np.where(np.abs(r) < 1e-4, 0.5 + r / 6, (np.expm1(r) - r) / np.where(r == 0, 1, r * r))

    return fit(p, -0.35, 0.35, 4)


def exp(f: Function, type: str, x: str) -> str:
    """e**x; overflows to infinity and underflows through the denormal numbers."""
    x = clamp(f, type, x, -104.0, 89.0)
    n, ints = round_to_int(f, type, f.binary("fmul", type, x, literal(type, math.log2(math.e))))
    negated = f.op(f"fneg {type} {n}")
    high = float(np.float32(0.693359375))
    r = f.fma(type, negated, literal(type, high), x)
    r = f.fma(type, negated, literal(type, math.log(2) - high), r)
    square = f.binary("fmul", type, r, r)
    p = f.fma(type, horner(f, type, r, _exp_coefficients()), square, r)
    value = f.binary("fadd", type, p, literal(type, 1.0))
    # n may be beyond what one power of two can be: two halves.
    half = f.binary("ashr", _integer(type), ints, literal(_integer(type), 1))
    rest = f.binary("sub", _integer(type), ints, half)
    value = f.binary("fmul", type, value, power_of_two(f, type, half))
    return f.binary("fmul", type, value, power_of_two(f, type, rest))


def exp_below_zero(f: Function, type: str, x: str) -> str:
    """e**x of x up to 0, in fewer instructions: what would be below 2**-125 is 0."""
    lowest = literal(type, -86.5)
    vanishes = f.compare("olt", type, x, lowest)
    x = f.select(f.compare("ogt", type, lowest, x), type, lowest, x)
    magic = literal(type, 12582912.0)
    shifted = f.fma(type, x, literal(type, math.log2(math.e)), magic)
    n = f.binary("fsub", type, shifted, magic)
    r = f.fma(type, n, literal(type, -_LOG2_HIGH), x)
    r = f.fma(type, n, literal(type, _LOG2_HIGH - math.log(2)), r)
    square = f.binary("fmul", type, r, r)
    p = f.fma(type, horner(f, type, r, _exp_coefficients()), square, r)
    value = f.binary("fadd", type, p, literal(type, 1.0))
    # The lowest bits of `shifted` are n: shifted up, they are what n adds to an exponent.
    ints = _integer(type)
    exponent = f.convert("bitcast", shifted, type, ints)
    exponent = f.binary("shl", ints, exponent, literal(ints, 23))
    bits = f.binary("add", ints, f.convert("bitcast", value, type, ints), exponent)
    return f.select(vanishes, type, literal(type, 0.0), f.convert("bitcast", bits, ints, type))


@cache
def _log_coefficients() -> list[float]:
    # log(m) = 2s + s**3 * p(s*s) where s = (m-1)/(m+1).
    def p(z: np.ndarray) -> np.ndarray:
        s = np.sqrt(z)
        return np.where(z < 1e-6, 2 / 3 + 2 * z / 5, (2 * np.arctanh(s) - 2 * s) / np.where(s == 0, 1, s**3))

    return fit(p, 0.0, 0.0296, 4)


def log(f: Function, type: str, x: str) -> str:
    """The natural logarithm; -infinity of 0, NaN of negative numbers."""
    ints = _integer(type)
    tiny = f.compare("olt", type, x, literal(type, 2.0**-126))
    scaled = f.select(tiny, type, f.binary("fmul", type, x, literal(type, 2.0**24)), x)
    bits = f.convert("bitcast", scaled, type, ints)
    # The exponent that leaves a mantissa between sqrt(1/2) and sqrt(2).
    shifted = f.binary("sub", ints, bits, literal(ints, 0x3F3504F3))
    exponent = f.binary("ashr", ints, shifted, literal(ints, 23))
    mantissa_bits = f.binary("sub", ints, bits, f.binary("shl", ints, exponent, literal(ints, 23)))
    m = f.convert("bitcast", mantissa_bits, ints, type)
    e = f.convert("sitofp", exponent, ints, type)
    e = f.select(tiny, type, f.binary("fsub", type, e, literal(type, 24.0)), e)
    s = f.binary(
        "fdiv", type, f.binary("fadd", type, m, literal(type, -1.0)), f.binary("fadd", type, m, literal(type, 1.0))
    )
    z = f.binary("fmul", type, s, s)
    cubic = f.binary("fmul", type, f.binary("fmul", type, s, z), horner(f, type, z, _log_coefficients()))
    high = float(np.float32(0.693359375))
    low = f.fma(type, e, literal(type, math.log(2) - high), cubic)
    low = f.fma(type, s, literal(type, 2.0), low)
    result = f.fma(type, e, literal(type, high), low)
    # Infinity and NaN stay what they are; 0 and negative numbers have no finite logarithm.
    special = f.compare("uge", type, x, literal(type, math.inf))
    result = f.select(special, type, x, result)
    zero = f.compare("oeq", type, x, literal(type, 0.0))
    result = f.select(zero, type, literal(type, -math.inf), result)
    negative = f.compare("olt", type, x, literal(type, 0.0))
    return f.select(negative, type, literal(type, math.nan), result)


@cache
def _tanh_coefficients() -> list[float]:
    def p(z: np.ndarray) -> np.ndarray:
        x = np.sqrt(z)
        return np.where(z < 1e-6, -1 / 3 + 2 * z / 15, (np.tanh(x) - x) / np.where(x == 0, 1, x**3))

    return fit(p, 0.0, 0.4, 5)


def tanh(f: Function, type: str, x: str) -> str:
    """The hyperbolic tangent: a polynomial near 0, 1 - 2/(exp(2x) + 1) elsewhere."""
    z = f.binary("fmul", type, x, x)
    cubic = f.binary("fmul", type, f.binary("fmul", type, x, z), horner(f, type, z, _tanh_coefficients()))
    near = f.binary("fadd", type, x, cubic)
    size = f.intrinsic("llvm.fabs", type, x)
    grown = exp(f, type, f.binary("fadd", type, size, size))
    quotient = f.binary("fdiv", type, literal(type, -2.0), f.binary("fadd", type, grown, literal(type, 1.0)))
    far = f.binary("fadd", type, quotient, literal(type, 1.0))
    far = f.intrinsic("llvm.copysign", type, far, x)
    small = f.compare("olt", type, size, literal(type, 0.625))
    return f.select(small, type, near, far)


@cache
def _erf_coefficients() -> tuple[list[float], list[float]]:
    def near(z: np.ndarray) -> np.ndarray:
        return np.array([math.erf(math.sqrt(v)) / math.sqrt(v) if v > 1e-12 else 2 / math.sqrt(math.pi) for v in z])

    def far(a: np.ndarray) -> np.ndarray:
        return np.array([math.log(math.erfc(v)) for v in a])

    return fit(near, 0.0, 1.0, 7), fit(far, 1.0, 4.0, 8)


def erf(f: Function, type: str, x: str) -> str:
    """The error function: x*p(x*x) up to 1, 1 - exp(q(x)) up to 4, 1 beyond."""
    near_c, far_c = _erf_coefficients()
    size = f.intrinsic("llvm.fabs", type, x)
    capped = clamp(f, type, size, 0.0, 4.0)
    z = f.binary("fmul", type, x, x)
    z = clamp(f, type, z, 0.0, 1.0)
    near = f.binary("fmul", type, x, horner(f, type, z, near_c))
    far = f.binary("fsub", type, literal(type, 1.0), exp(f, type, horner(f, type, capped, far_c)))
    far = f.intrinsic("llvm.copysign", type, far, x)
    small = f.compare("ole", type, size, literal(type, 1.0))
    return f.select(small, type, near, far)
