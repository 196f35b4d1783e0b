"""Primitive operators as instructions: EMIT, on scalars and vectors alike.

An element is computed in its dtype's compute type: 16-bit floats as float, bool as i1, the rest
as they are.
"""

from __future__ import annotations

from collections.abc import Callable

from whet.errors import CompileError
from whet.ir.graph import Op
from whet.ir.types import FLOATS, UNSIGNED
from whet.ops import elementwise as ew
from whet.ops.bits import BitCast
from whet.ops.cast import FEW_BITS
from whet.ops.quantize import Saturate, integer_range
from whet.targets.cpu import functions, power
from whet.targets.cpu.functions import library
from whet.targets.cpu.llvm import Function, literal, split_type, suffix, vector

COMPUTE: dict[str, str] = {
    "bool": "i1",
    "float16": "float",
    "bfloat16": "float",
    "float32": "float",
    "float64": "double",
    **{f"{sign}int{bits}": f"i{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **dict.fromkeys(FEW_BITS, "i8"),  # carried as they are: casts are made of their bits
}
STORAGE: dict[str, str] = {**COMPUTE, "bool": "i8", "float16": "half", "bfloat16": "i16"}


def compute_type(dtype: str, lanes: int) -> str:
    return vector(COMPUTE[dtype], lanes)


def storage_type(dtype: str, lanes: int) -> str:
    return vector(STORAGE[dtype], lanes)


def to_compute(f: Function, value: str, dtype: str, lanes: int) -> str:
    """A loaded element as its compute type."""
    source, target = storage_type(dtype, lanes), compute_type(dtype, lanes)
    if dtype == "bool":
        return f.compare("ne", source, value, literal(source, 0))
    if dtype == "float16":
        return f.convert("fpext", value, source, target)
    if dtype == "bfloat16":
        wide = f.convert("zext", value, source, vector("i32", lanes))
        shifted = f.binary("shl", vector("i32", lanes), wide, literal(vector("i32", lanes), 16))
        return f.convert("bitcast", shifted, vector("i32", lanes), target)
    return value


def to_storage(f: Function, value: str, dtype: str, lanes: int) -> str:
    """A computed element as it lies in memory, rounded to nearest even."""
    source, target = compute_type(dtype, lanes), storage_type(dtype, lanes)
    if dtype == "bool":
        return f.convert("zext", value, source, target)
    if dtype == "float16":
        return f.convert("fptrunc", value, source, target)
    if dtype == "bfloat16":
        return f.convert("trunc", _round_to_bfloat(f, value, lanes), vector("i32", lanes), target)
    return value


def _round_to_bfloat(f: Function, value: str, lanes: int) -> str:
    """The upper half of a float, rounded; NaN keeps its sign and becomes quiet."""
    ints, floats = vector("i32", lanes), vector("float", lanes)
    bits = f.convert("bitcast", value, floats, ints)
    odd = f.binary("and", ints, f.binary("lshr", ints, bits, literal(ints, 16)), literal(ints, 1))
    rounded = f.binary("add", ints, f.binary("add", ints, bits, literal(ints, 0x7FFF)), odd)
    quiet = f.binary("or", ints, bits, literal(ints, 0x400000))
    nan = f.compare("uno", floats, value, value)
    return f.binary("lshr", ints, f.select(nan, ints, quiet, rounded), literal(ints, 16))


def round_to(f: Function, value: str, dtype: str, lanes: int) -> str:
    """A computed element as precise as its dtype; what a Cast to a 16-bit float does."""
    if dtype not in ("float16", "bfloat16"):
        return value
    return to_compute(f, to_storage(f, value, dtype, lanes), dtype, lanes)


Emit = Callable[[Function, Op, str, str, list[str]], str]
"""(function, operator, dtype of the inputs, compute type, inputs) -> result"""


def emit(f: Function, op: Op, dtypes: list[str], result: str, args: list[str], lanes: int) -> str:
    """The instructions of one operator; raises CompileError for one that has none."""
    if isinstance(op, ew.Cast):
        return cast(f, args[0], dtypes[0], result, lanes)
    rule = EMIT.get(type(op))
    if rule is None:
        raise CompileError(
            f"cpu has no instruction for {op}; give it a `lower`, or an entry in EMIT"
        )
    dtype = dtypes[1] if isinstance(op, ew.Where) else dtypes[0]
    return rule(f, op, dtype, compute_type(dtype, lanes), args)


def is_float(dtype: str) -> bool:
    return dtype in FLOATS


def _either(integer: str, floating: str, unsigned: str = "") -> Emit:
    def rule(f: Function, op: Op, dtype: str, type: str, args: list[str]) -> str:
        name = unsigned if unsigned and dtype in UNSIGNED else integer
        name = floating if is_float(dtype) else name
        return f.binary(name, type, *args)

    return rule


def _integer_only(name: str) -> Emit:
    return lambda f, op, dtype, type, args: f.binary(name, type, *args)


def _compare(signed: str, unsigned: str, floating: str) -> Emit:
    def rule(f: Function, op: Op, dtype: str, type: str, args: list[str]) -> str:
        predicate = unsigned if dtype in UNSIGNED or dtype == "bool" else signed
        predicate = floating if is_float(dtype) else predicate
        return f.compare(predicate, type, *args)

    return rule


def _extreme(name: str) -> Emit:
    """max and min: NaN where either side is."""
    predicate = {"max": "ugt", "min": "ult"}[name]

    def rule(f: Function, op: Op, dtype: str, type: str, args: list[str]) -> str:
        a, b = args
        if is_float(dtype):
            if is_number(b):  # no NaN can come from there, which saves two instructions
                return f.select(f.compare(predicate, type, a, b), type, a, b)
            return f.extreme(name, type, a, b)
        if dtype == "bool":
            return f.binary("or" if name == "max" else "and", type, a, b)
        return f.intrinsic(f"llvm.{'u' if dtype in UNSIGNED else 's'}{name}", type, a, b)

    return rule


def is_number(value: str) -> bool:
    """Whether an LLVM value is a literal."""
    return value.startswith(("0x", "splat", "-")) or value[:1].isdigit()


def _neg(f: Function, op: Op, dtype: str, type: str, args: list[str]) -> str:
    return (
        f.op(f"fneg {type} {args[0]}")
        if is_float(dtype)
        else f.binary("sub", type, literal(type, 0), args[0])
    )


def _abs(f: Function, op: Op, dtype: str, type: str, args: list[str]) -> str:
    if is_float(dtype):
        return f.intrinsic("llvm.fabs", type, args[0])
    if dtype in UNSIGNED:
        return args[0]
    negative = f.compare("slt", type, args[0], literal(type, 0))
    return f.select(negative, type, f.binary("sub", type, literal(type, 0), args[0]), args[0])


def _sign(f: Function, op: Op, dtype: str, type: str, args: list[str]) -> str:
    (x,) = args
    zero, one = literal(type, 0), literal(type, 1)
    if is_float(dtype):
        above = f.select(f.compare("ogt", type, x, zero), type, one, x)
        return f.select(f.compare("olt", type, x, zero), type, literal(type, -1), above)
    above = f.select(f.compare("ne", type, x, zero), type, one, zero)
    if dtype in UNSIGNED:
        return above
    return f.select(f.compare("slt", type, x, zero), type, literal(type, -1), above)


def _div(f: Function, op: Op, dtype: str, type: str, args: list[str]) -> str:
    a, b = args
    if is_float(dtype):
        return f.binary("fdiv", type, a, b)
    zero = f.compare("eq", type, b, literal(type, 0))
    safe = f.select(zero, type, literal(type, 1), b)
    if dtype not in UNSIGNED:
        # The least number over -1 overflows, and traps: it is its own negative.
        minus = f.compare("eq", type, b, literal(type, -1))
        safe = f.select(minus, type, literal(type, 1), safe)
        negated = f.binary("sub", type, literal(type, 0), a)
        quotient = f.select(minus, type, negated, f.binary("sdiv", type, a, safe))
    else:
        quotient = f.binary("udiv", type, a, safe)
    return f.select(zero, type, literal(type, 0), quotient)


def _mod(f: Function, op: Op, dtype: str, type: str, args: list[str]) -> str:
    assert isinstance(op, ew.Mod)
    a, b = args
    if is_float(dtype):
        rest = library(f, "fmod", type, args)
        return rest if op.truncated else _toward_divisor(f, type, rest, b)
    zero = f.compare("eq", type, b, literal(type, 0))
    if dtype in UNSIGNED:
        rest = f.binary("urem", type, a, f.select(zero, type, literal(type, 1), b))
        return f.select(zero, type, literal(type, 0), rest)
    bad = f.binary("or", f"{_mask(type)}", zero, f.compare("eq", type, b, literal(type, -1)))
    rest = f.binary("srem", type, a, f.select(bad, type, literal(type, 1), b))
    if op.truncated:
        return rest
    crossed = f.compare("slt", type, f.binary("xor", type, rest, b), literal(type, 0))
    some = f.compare("ne", type, rest, literal(type, 0))
    wrong = f.binary("and", _mask(type), crossed, some)
    return f.select(wrong, type, f.binary("add", type, rest, b), rest)


def _toward_divisor(f: Function, type: str, rest: str, b: str) -> str:
    """A truncated remainder with the sign of the divisor."""
    zero = literal(type, 0)
    crossed = f.binary(
        "xor", _mask(type), f.compare("olt", type, rest, zero), f.compare("olt", type, b, zero)
    )
    wrong = f.binary("and", _mask(type), crossed, f.compare("one", type, rest, zero))
    return f.select(wrong, type, f.binary("fadd", type, rest, b), rest)


def _mask(type: str) -> str:
    return vector("i1", split_type(type)[1])


def _shift(f: Function, op: Op, dtype: str, type: str, args: list[str]) -> str:
    assert isinstance(op, ew.Shift)
    width = int(split_type(type)[0][1:])
    inside = f.compare("ult", type, args[1], literal(type, width))
    if not op.left and dtype not in UNSIGNED:
        # All the way to the right only the sign is left.
        return f.binary(
            "ashr", type, args[0], f.select(inside, type, args[1], literal(type, width - 1))
        )
    amount = f.select(inside, type, args[1], literal(type, 0))
    shifted = f.binary("shl" if op.left else "lshr", type, args[0], amount)
    return f.select(inside, type, shifted, literal(type, 0))


def _not(f: Function, op: Op, dtype: str, type: str, args: list[str]) -> str:
    return f.binary(
        "xor", type, args[0], literal(type, -1) if type[0] != "<" else literal(type, True)
    )


def _invert(f: Function, op: Op, dtype: str, type: str, args: list[str]) -> str:
    return f.binary("xor", type, args[0], literal(type, -1))


def _is_inf(f: Function, op: Op, dtype: str, type: str, args: list[str]) -> str:
    assert isinstance(op, ew.IsInf)
    up = f.compare("oeq", type, args[0], literal(type, float("inf") if op.positive else 0.0))
    down = f.compare("oeq", type, args[0], literal(type, float("-inf") if op.negative else 0.0))
    if op.positive and op.negative:
        return f.binary("or", _mask(type), up, down)
    return up if op.positive else down


def _pow(f: Function, op: Op, dtype: str, type: str, args: list[str]) -> str:
    if not is_float(dtype):
        return _integer_power(f, dtype, type, *args)
    simple = power.by_literal(f, type, *args)
    if simple is not None:
        return simple
    if split_type(type)[0] == "float":
        return power.power(f, type, *args)
    return library(f, "pow", type, args)


def _integer_power(f: Function, dtype: str, type: str, base: str, exponent: str) -> str:
    """By squaring, wrapping around; below an exponent of 0 only 1 and -1 leave something."""
    one, zero = literal(type, 1), literal(type, 0)
    result, square = one, base
    for bit in range(int(split_type(type)[0][1:])):
        wanted = f.compare(
            "ne", type, f.binary("and", type, exponent, literal(type, 1 << bit)), zero
        )
        result = f.select(wanted, type, f.binary("mul", type, result, square), result)
        square = f.binary("mul", type, square, square)
    if dtype in UNSIGNED:
        return result
    minus = f.compare("eq", type, base, literal(type, -1))
    unit = f.binary("or", _mask(type), minus, f.compare("eq", type, base, one))
    kept = f.select(unit, type, result, zero)
    return f.select(f.compare("slt", type, exponent, zero), type, kept, result)


def _intrinsic(name: str) -> Emit:
    def rule(f: Function, op: Op, dtype: str, type: str, args: list[str]) -> str:
        return f.intrinsic(f"llvm.{name}", type, *args) if is_float(dtype) else args[0]

    return rule


def _function(single: Callable[[Function, str, str], str], name: str) -> Emit:
    """Our own vector code for float, the C library's function, lane by lane, for double."""

    def rule(f: Function, op: Op, dtype: str, type: str, args: list[str]) -> str:
        return (
            single(f, type, args[0])
            if split_type(type)[0] == "float"
            else library(f, name, type, args)
        )

    return rule


def _sigmoid(f: Function, type: str, x: str) -> str:
    if split_type(type)[0] == "float":
        return functions.sigmoid(f, type, x)
    e = library(f, "exp", type, [f.op(f"fneg {type} {x}")])
    one = literal(type, 1.0)
    return f.binary("fdiv", type, one, f.binary("fadd", type, one, e))


def _silu(f: Function, op: Op, dtype: str, type: str, args: list[str]) -> str:
    assert isinstance(op, ew.Silu)
    (x,) = args
    scaled = x if op.alpha == 1.0 else f.binary("fmul", type, x, literal(type, op.alpha))
    return f.binary("fmul", type, x, _sigmoid(f, type, scaled))


def _gelu(f: Function, op: Op, dtype: str, type: str, args: list[str]) -> str:
    """x times (1 + erf) / 2, or (1 + tanh(u)) / 2, which is sigmoid(2u)."""
    assert isinstance(op, ew.Gelu)
    (x,) = args
    if op.approximate:
        slope, bend = (literal(type, 1.5957691216057308 * c) for c in (1.0, 0.044715))
        u = f.binary("fmul", type, x, f.fma(type, f.binary("fmul", type, x, x), bend, slope))
        return f.binary("fmul", type, x, _sigmoid(f, type, u))
    root = f.binary("fmul", type, x, literal(type, 0.7071067811865476))
    erf, half = EMIT[ew.Erf](f, op, dtype, type, [root]), literal(type, 0.5)
    return f.binary("fmul", type, x, f.fma(type, erf, half, half))


def _library(name: str) -> Emit:
    return lambda f, op, dtype, type, args: library(f, name, type, args)


def _bit_cast(f: Function, op: Op, dtype: str, type: str, args: list[str]) -> str:
    assert isinstance(op, BitCast)
    lanes = split_type(type)[1]
    source, target = storage_type(dtype, lanes), storage_type(op.to, lanes)
    stored = to_storage(f, args[0], dtype, lanes)
    if source != target:
        stored = f.convert("bitcast", stored, source, target)
    return to_compute(f, stored, op.to, lanes)


def _saturate(f: Function, op: Op, dtype: str, type: str, args: list[str]) -> str:
    """Bounded before it is rounded, which is as good between integers; the conversion rounds."""
    assert isinstance(op, Saturate)
    (x, zero), lanes = args, split_type(type)[1]
    ints = vector("i32", lanes)
    for limit, beyond in zip(integer_range(op.to), ("ogt", "olt")):
        room = f.binary("sub", ints, literal(ints, limit), zero)
        bound = f.convert("sitofp", room, ints, type)
        x = f.select(f.compare(beyond, type, x, bound), type, x, bound)
    rounded = f.call(ints, f"llvm.lrint.{suffix(ints)}.{suffix(type)}", [(type, x)])
    return f.convert(
        "trunc", f.binary("add", ints, rounded, zero), ints, compute_type(op.to, lanes)
    )


EMIT: dict[type[Op], Emit] = {
    ew.Add: _either("add", "fadd"),
    ew.Sub: _either("sub", "fsub"),
    ew.Mul: _either("mul", "fmul"),
    ew.Div: _div,
    ew.Mod: _mod,
    ew.Pow: _pow,
    ew.Max: _extreme("max"),
    ew.Min: _extreme("min"),
    ew.Neg: _neg,
    ew.Abs: _abs,
    ew.Sign: _sign,
    ew.Floor: _intrinsic("floor"),
    ew.Ceil: _intrinsic("ceil"),
    ew.Round: _intrinsic("roundeven"),
    ew.Sqrt: _intrinsic("sqrt"),
    ew.Exp: _function(functions.exp, "exp"),
    ew.Log: _function(functions.log, "log"),
    ew.Tanh: _function(functions.tanh, "tanh"),
    ew.Sigmoid: lambda f, op, dtype, type, args: _sigmoid(f, type, args[0]),
    ew.Silu: _silu,
    ew.Gelu: _gelu,
    ew.Erf: _function(functions.erf, "erf"),
    ew.Sin: _function(functions.sin, "sin"),
    ew.Cos: _function(functions.cos, "cos"),
    ew.Atan: _library("atan"),
    ew.Not: _not,
    ew.BitwiseNot: _invert,
    ew.And: _integer_only("and"),
    ew.Or: _integer_only("or"),
    ew.Xor: _integer_only("xor"),
    ew.BitwiseAnd: _integer_only("and"),
    ew.BitwiseOr: _integer_only("or"),
    ew.BitwiseXor: _integer_only("xor"),
    ew.Shift: _shift,
    BitCast: _bit_cast,
    Saturate: _saturate,
    ew.Less: _compare("slt", "ult", "olt"),
    ew.LessOrEqual: _compare("sle", "ule", "ole"),
    ew.Equal: _compare("eq", "eq", "oeq"),
    ew.IsNaN: lambda f, op, dtype, type, args: f.compare("uno", type, args[0], args[0]),
    ew.IsInf: _is_inf,
    ew.Where: lambda f, op, dtype, type, args: f.select(args[0], type, args[1], args[2]),
}


def cast(f: Function, x: str, source: str, target: str, lanes: int) -> str:
    """An element of one dtype as another; floats become integers by rounding toward zero."""
    from_type, to_type = compute_type(source, lanes), compute_type(target, lanes)
    if is_float(target):
        if is_float(source):
            return round_to(f, _resize_float(f, x, from_type, to_type), target, lanes)
        how = "uitofp" if source in UNSIGNED or source == "bool" else "sitofp"
        return round_to(f, f.convert(how, x, from_type, to_type), target, lanes)
    if target == "bool":
        predicate = "une" if is_float(source) else "ne"
        return x if source == "bool" else f.compare(predicate, from_type, x, literal(from_type, 0))
    if is_float(source):
        return _float_to_integer(f, x, from_type, target, lanes)
    return _resize_integer(f, x, source, from_type, to_type)


def _resize_float(f: Function, x: str, source: str, target: str) -> str:
    if source == target:
        return x
    return f.convert("fpext" if "double" in target else "fptrunc", x, source, target)


def _float_to_integer(f: Function, x: str, source: str, target: str, lanes: int) -> str:
    """Through a wide integer, as NumPy does: what is out of range wraps, and is not poison."""
    wide = vector("i64", lanes)
    if target == "uint64":
        # Numbers from 2**63 up do not fit a signed one.
        big = f.compare("oge", source, x, literal(source, 2.0**63))
        less = f.binary("fsub", source, x, literal(source, 2.0**63))
        low = _saturating(f, x, source, wide)
        high = _saturating(f, less, source, wide)
        flipped = f.binary("xor", wide, high, literal(wide, -(2**63)))
        return f.select(big, wide, flipped, low)
    narrow = (
        vector("i32", lanes) if target in ("int32", "int16", "uint16", "int8", "uint8") else wide
    )
    value = _saturating(f, x, source, narrow if target != "uint32" else wide)
    have = narrow if target != "uint32" else wide
    want = compute_type(target, lanes)
    return value if have == want else f.convert("trunc", value, have, want)


def _saturating(f: Function, x: str, source: str, target: str) -> str:
    return f.call(target, f"llvm.fptosi.sat.{suffix(target)}.{suffix(source)}", [(source, x)])


def _resize_integer(f: Function, x: str, source: str, from_type: str, to_type: str) -> str:
    have, want = (int(split_type(t)[0][1:]) for t in (from_type, to_type))
    if have == want:
        return x
    if have > want:
        return f.convert("trunc", x, from_type, to_type)
    return f.convert(
        "zext" if source in UNSIGNED or source == "bool" else "sext", x, from_type, to_type
    )
