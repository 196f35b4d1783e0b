"""Elementary functions of float32 vectors, from additions and multiplications.

Each is a range reduction and a polynomial, fitted here in double precision: by Chebyshev
interpolation, or where a degree is saved by least squares whose weights follow the error (Lawson
1961). Errors are below 2 units in the last place, of tanh below 2.5, of sigmoid below 3; erf is
right within 1.5e-7. With AVX-512 a quotient begins at an estimate of 14 bits, and is corrected by
what its product with the divisor leaves: a division of 16 lanes keeps a core for 16 cycles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from whet.targets.cpu.llvm import Function, literal, split_type, vector


def fit(
    function: Callable[[np.ndarray], np.ndarray], low: float, high: float, degree: int
) -> list[float]:
    """Coefficients, constant first, of the polynomial through the Chebyshev points."""
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


def fit_relative(
    function: Callable[[np.ndarray], np.ndarray], low: float, high: float, degree: int
) -> list[float]:
    """Coefficients of a polynomial that is 1 at 0, of nearly the least relative error."""
    nodes = np.cos((np.arange(2000) + 0.5) / 2000 * np.pi)
    x = (high - low) / 2 * nodes + (high + low) / 2
    wanted = function(x)
    powers = np.stack([x**k for k in range(1, degree + 1)], axis=1) / wanted[:, None]
    rest = 1 - 1 / wanted
    weights = np.full(len(x), 1 / len(x))
    best, least = np.zeros(degree), math.inf
    for _ in range(40):
        root = np.sqrt(weights)
        found, *_ = np.linalg.lstsq(powers * root[:, None], rest * root, rcond=None)
        error = np.abs(powers @ found - rest)
        if error.max() < least:
            best, least = found, error.max()
        weights = weights * error / (weights @ error)
    return [1.0, *map(float, best)]


def _integer(type: str) -> str:
    return vector("i32", split_type(type)[1])


def clamp(f: Function, type: str, x: str, low: float, high: float) -> str:
    """x between the bounds; NaN stays NaN."""
    over = f.compare("ogt", type, x, literal(type, high))
    x = f.select(over, type, literal(type, high), x)
    under = f.compare("olt", type, x, literal(type, low))
    return f.select(under, type, literal(type, low), x)


def has_estimates(f: Function, type: str) -> bool:
    """Whether the type fills a register of a kind that AVX-512's estimates and scalings take."""
    element, lanes = split_type(type)
    return f.module.vector_bits == 512 and element == "float" and lanes in (4, 8, 16)


def quotient(f: Function, type: str, a: str, b: str) -> str:
    """a / b of finite numbers, b from 1 to 2**126, but for the last bit."""
    if not has_estimates(f, type):
        return f.binary("fdiv", type, a, b)
    bits = 32 * split_type(type)[1]
    mask = "i16" if bits == 512 else "i8"
    given = [(type, b), (type, "zeroinitializer"), (mask, "-1")]
    estimate = f.call(type, f"llvm.x86.avx512.rcp14.ps.{bits}", given)
    near = f.binary("fmul", type, a, estimate)
    rest = f.fma(type, f.op(f"fneg {type} {near}"), b, a)
    return f.fma(type, rest, estimate, near)


def _scaled(f: Function, type: str, x: str, exponent: str) -> str:
    """x * 2**exponent, rounded once, of a float that is an integer; for `has_estimates` only."""
    bits = 32 * split_type(type)[1]
    given = [(type, x), (type, exponent), (type, "zeroinitializer")]
    given.append(("i16" if bits == 512 else "i8", "-1"))
    given += [("i32", "4")] if bits == 512 else []
    return f.call(type, f"llvm.x86.avx512.mask.scalef.ps.{bits}", given)


LOG2_HIGH = 0.693359375  # ln 2 in nine bits: its products with small integers are exact


@cache
def _exp_coefficients(degree: int) -> list[float]:
    return fit_relative(np.exp, -0.3475, 0.3475, degree)


def _reduced(f: Function, type: str, x: str) -> tuple[str, str, str]:
    """(r, n, the bits n << 23) where x = n * ln 2 + r and |r| is at most half of ln 2."""
    magic, ints = literal(type, 12582912.0), _integer(type)
    shifted = f.fma(type, x, literal(type, math.log2(math.e)), magic)
    n = f.binary("fsub", type, shifted, magic)
    r = f.fma(type, n, literal(type, -LOG2_HIGH), x)
    r = f.fma(type, n, literal(type, LOG2_HIGH - math.log(2)), r)
    # Adding 1.5 * 2**23 left n in the lowest bits; above an exponent's place nothing is left of it.
    bits = f.convert("bitcast", shifted, type, ints)
    return r, n, f.binary("shl", ints, bits, literal(ints, 23))


def _power(f: Function, type: str, exponent: str) -> str:
    """2**n from n << 23; 0 for n = -127."""
    ints = _integer(type)
    bits = f.binary("add", ints, exponent, literal(ints, 127 << 23))
    return f.convert("bitcast", bits, ints, type)


def exp(f: Function, type: str, x: str) -> str:
    """e**x; overflows to infinity and underflows through the denormal numbers."""
    x = clamp(f, type, x, -104.0, 89.0)
    r, n, exponent = _reduced(f, type, x)
    value = horner(f, type, r, _exp_coefficients(6))
    if has_estimates(f, type):
        return _scaled(f, type, value, n)
    # n may be beyond what one power of two can be: 64 of it are taken off and multiplied in later.
    ints = _integer(type)
    small = f.compare("olt", type, x, literal(type, 0.0))
    offset = f.select(small, ints, literal(ints, 64 << 23), literal(ints, -64 << 23))
    factor = f.select(small, type, literal(type, 2.0**-64), literal(type, 2.0**64))
    scale = _power(f, type, f.binary("add", ints, exponent, offset))
    return f.binary("fmul", type, f.binary("fmul", type, value, scale), factor)


def exp_below_zero(f: Function, type: str, x: str, degree: int = 6) -> str:
    """e**x of x up to 80, in fewer instructions: what would be below 2**-126 may be 0."""
    lowest = literal(type, -104.0 if has_estimates(f, type) else -88.0)
    x = f.select(f.compare("ogt", type, lowest, x), type, lowest, x)
    r, n, exponent = _reduced(f, type, x)
    value = horner(f, type, r, _exp_coefficients(degree))
    if has_estimates(f, type):
        return _scaled(f, type, value, n)
    return f.binary("fmul", type, value, _power(f, type, exponent))


def sigmoid(f: Function, type: str, x: str) -> str:
    """e**x / (1 + e**x); a large x is held where both sides are finite and their quotient is 1."""
    highest = literal(type, 80.0)
    x = f.select(f.compare("olt", type, highest, x), type, highest, x)
    e = exp_below_zero(f, type, x, degree=5)
    return quotient(f, type, e, f.binary("fadd", type, e, literal(type, 1.0)))


@cache
def _log_coefficients() -> list[float]:
    # log(m) = 2s + s**3 * p(s*s) where s = (m-1)/(m+1).
    def p(z: np.ndarray) -> np.ndarray:
        s = np.sqrt(z)
        return np.where(
            z < 1e-6, 2 / 3 + 2 * z / 5, (2 * np.arctanh(s) - 2 * s) / np.where(s == 0, 1, s**3)
        )

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
        "fdiv",
        type,
        f.binary("fadd", type, m, literal(type, -1.0)),
        f.binary("fadd", type, m, literal(type, 1.0)),
    )
    z = f.binary("fmul", type, s, s)
    cubic = f.binary(
        "fmul", type, f.binary("fmul", type, s, z), horner(f, type, z, _log_coefficients())
    )
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
def _expm1_coefficients() -> list[float]:
    # exp(r) = 1 + r + r*r*p(r), so that the leading terms are exact.
    def p(r: np.ndarray) -> np.ndarray:
        return np.where(
            np.abs(r) < 1e-4, 0.5 + r / 6, (np.expm1(r) - r) / np.where(r == 0, 1, r * r)
        )

    return fit(p, -0.35, 0.35, 4)


def tanh(f: Function, type: str, x: str) -> str:
    """The hyperbolic tangent as E / (E + 2), where E = exp(2|x|) - 1 keeps its precision near 0."""
    size, most = f.intrinsic("llvm.fabs", type, x), literal(type, 10.0)
    size = f.select(f.compare("olt", type, most, size), type, most, size)
    r, _, exponent = _reduced(f, type, f.binary("fadd", type, size, size))
    square = f.binary("fmul", type, r, r)
    p = f.fma(type, horner(f, type, r, _expm1_coefficients()), square, r)
    scale = _power(f, type, exponent)
    grown = f.fma(type, scale, p, f.binary("fadd", type, scale, literal(type, -1.0)))
    beside = f.binary("fadd", type, grown, literal(type, 2.0))
    return f.intrinsic("llvm.copysign", type, quotient(f, type, grown, beside), x)


ERF_END = 3.88  # from here on erf is 1, but for 4e-8


@cache
def _erf_coefficients() -> list[float]:
    """erf(x) / x - 1/2 by the square of x, mapped to [-1, 1]."""

    def ratio(t: np.ndarray) -> np.ndarray:
        x = np.sqrt((t + 1) / 2) * ERF_END
        return np.array([math.erf(v) / v for v in x]) - 0.5

    return fit(ratio, -1.0, 1.0, 16)


def erf(f: Function, type: str, x: str) -> str:
    """The error function: x times a polynomial of x*x; 1 beyond 3.88."""
    x = clamp(f, type, x, -ERF_END, ERF_END)
    square = f.binary("fmul", type, x, x)
    t = f.fma(type, square, literal(type, 2 / ERF_END**2), literal(type, -1.0))
    half = f.binary("fmul", type, x, literal(type, 0.5))
    return f.fma(type, x, horner(f, type, t, _erf_coefficients()), half)


@cache
def _wave_coefficients() -> tuple[list[float], list[float]]:
    # sin(r) = r + r**3 * p(r*r) and cos(r) = 1 - r*r/2 + r**4 * q(r*r), up to pi/4.
    def sine(z: np.ndarray) -> np.ndarray:
        r = np.sqrt(z)
        return np.where(z < 1e-4, -1 / 6 + z / 120, (np.sin(r) - r) / np.where(r == 0, 1, r**3))

    def cosine(z: np.ndarray) -> np.ndarray:
        rest = np.cos(np.sqrt(z)) - 1 + z / 2
        return np.where(z < 1e-2, 1 / 24 - z / 720, rest / np.where(z == 0, 1, z * z))

    return fit(sine, 0.0, 0.62, 2), fit(cosine, 0.0, 0.62, 2)


# pi / 2 in 33 bits, whose products with integers below 2**20 are exact, and the rest of it.
QUARTER_HIGH = float.fromhex("0x1.921fb544p+0")
QUARTER_LOW = 6.077100506506192e-11
WAVE_END = 1e6  # beyond, the C library reduces the argument


def sin(f: Function, type: str, x: str) -> str:
    """The sine, by its distance from the nearest multiple of pi/2."""
    return _wave(f, type, x, "sin", 0)


def cos(f: Function, type: str, x: str) -> str:
    """The cosine: the sine a quarter of a turn later."""
    return _wave(f, type, x, "cos", 1)


def _wave(f: Function, type: str, x: str, name: str, quarter: int) -> str:
    lanes = split_type(type)[1]
    far = f.compare("uge", type, f.intrinsic("llvm.fabs", type, x), literal(type, WAVE_END))
    (value,) = f.when(
        any_lane(f, far, lanes),
        lambda: [library(f, name, type, [x])],
        lambda: [_near_wave(f, type, x, quarter)],
        [type],
    )
    return value


def _near_wave(f: Function, type: str, x: str, quarter: int) -> str:
    lanes = split_type(type)[1]
    wide, ints = vector("double", lanes), _integer(type)
    magic = literal(wide, 1.5 * 2.0**52)
    precise = f.convert("fpext", x, type, wide)
    shifted = f.fma(wide, precise, literal(wide, 2 / math.pi), magic)
    n = f.binary("fsub", wide, shifted, magic)
    rest = f.fma(wide, n, literal(wide, -QUARTER_HIGH), precise)
    rest = f.fma(wide, n, literal(wide, -QUARTER_LOW), rest)
    r = f.convert("fptrunc", rest, wide, type)
    bits = f.convert("bitcast", shifted, wide, vector("i64", lanes))
    turns = f.convert("trunc", bits, vector("i64", lanes), ints)
    turns = f.binary("add", ints, turns, literal(ints, quarter))
    sine, cosine = _sine_and_cosine(f, type, r)
    odd = f.binary("and", ints, turns, literal(ints, 1))
    value = f.select(f.compare("ne", ints, odd, literal(ints, 0)), type, cosine, sine)
    sign = f.binary("shl", ints, f.binary("and", ints, turns, literal(ints, 2)), literal(ints, 30))
    signed = f.binary("xor", ints, f.convert("bitcast", value, type, ints), sign)
    return f.convert("bitcast", signed, ints, type)


def _sine_and_cosine(f: Function, type: str, r: str) -> tuple[str, str]:
    """Of an angle up to pi/4."""
    sine_c, cosine_c = _wave_coefficients()
    z = f.binary("fmul", type, r, r)
    cubic = f.binary("fmul", type, f.binary("fmul", type, r, z), horner(f, type, z, sine_c))
    sine = f.binary("fadd", type, r, cubic)
    sine = f.select(f.compare("oeq", type, r, literal(type, 0.0)), type, r, sine)
    cosine = f.fma(type, z, literal(type, -0.5), literal(type, 1.0))
    fourth = f.binary("fmul", type, z, z)
    return sine, f.fma(type, fourth, horner(f, type, z, cosine_c), cosine)


def any_lane(f: Function, mask: str, lanes: int) -> str:
    """Whether a mask names any lane."""
    if lanes == 1:
        return mask
    return f.call("i1", f"llvm.vector.reduce.or.v{lanes}i1", [(f"<{lanes} x i1>", mask)])


_NAMES = "exp log tanh erf pow fmod sin cos tan asin acos atan sinh cosh asinh acosh atanh"
LIBRARY = frozenset(name + suffix for name in _NAMES.split() for suffix in ("", "f"))
"""Functions of the C library that generated code may call."""


def library(f: Function, name: str, type: str, args: list[str]) -> str:
    """A function of the C library, applied lane by lane."""
    element, lanes = split_type(type)
    name += "f" if element == "float" else ""
    if lanes == 1:
        return f.call(element, name, [(element, a) for a in args])
    result = "poison"
    for lane in range(lanes):
        scalars = [(element, f.extract(type, a, lane)) for a in args]
        result = f.insert(type, result, f.call(element, name, scalars), lane)
    return result
