"""Primitive operators as Triton expressions: EMIT.

An element is computed in its dtype's compute type: 16-bit floats as float32, the rest as they are.
A value is the name of a Triton tensor; rules give the text of an expression.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from whet.errors import CompileError
from whet.ir.graph import Op
from whet.ir.types import FLOATS, NUMPY_DTYPES, UNSIGNED
from whet.ops import elementwise as ew
from whet.ops.bits import BitCast
from whet.ops.cast import FEW_BITS

COMPUTE: dict[str, str] = {
    "bool": "tl.int1",
    "float16": "tl.float32",
    "bfloat16": "tl.float32",
    "float32": "tl.float32",
    "float64": "tl.float64",
    **{f"{sign}int{bits}": f"tl.{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **dict.fromkeys(FEW_BITS, "tl.int8"),  # carried as they are: casts are made of their bits
}
STORAGE: dict[str, str] = {
    **COMPUTE,
    "bool": "tl.int8",
    "float16": "tl.float16",
    "bfloat16": "tl.bfloat16",
}
POINTER: dict[str, str] = {
    "bool": "*i8",
    "float16": "*fp16",
    "bfloat16": "*bf16",
    "float32": "*fp32",
    "float64": "*fp64",
    **{f"int{bits}": f"*i{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"*u{bits}" for bits in (8, 16, 32, 64)},
    **dict.fromkeys(FEW_BITS, "*i8"),
}
NARROW = ("float16", "bfloat16")

Emit = Callable[[Op, str, list[str]], str]
"""(operator, dtype of the inputs, inputs) -> expression"""


def is_float(dtype: str) -> bool:
    return dtype in FLOATS and dtype not in FEW_BITS


def full(value: int | float | bool | str, dtype: str) -> str:
    """A number of a dtype, as a tensor that broadcasts."""
    return f"tl.full((1, 1), {number(value, dtype)}, {COMPUTE[dtype]})"


def number(value: int | float | bool | str, dtype: str) -> str:
    """A number as Triton reads it."""
    if isinstance(value, str):
        return value
    if dtype == "bool":
        return str(bool(value))
    if not is_float(dtype):
        return str(int(value))
    value = float(value)
    return repr(value) if np.isfinite(value) else f'float("{value}")'


def to_compute(value: str, dtype: str) -> str:
    """A loaded element as its compute type."""
    if dtype == "bool":
        return f"{value} != 0"
    return f"{value}.to(tl.float32)" if dtype in NARROW else value


def to_storage(value: str, dtype: str) -> str:
    """A computed element as it lies in memory, rounded to nearest even."""
    return value if STORAGE[dtype] == COMPUTE[dtype] else f"{value}.to({STORAGE[dtype]})"


def round_to(value: str, dtype: str) -> str:
    """A computed element as precise as its dtype; what a Cast to a 16-bit float does."""
    return f"{value}.to({STORAGE[dtype]}).to(tl.float32)" if dtype in NARROW else value


def emit(op: Op, dtypes: list[str], result: str, args: list[str], rough: bool = False) -> str:
    """The expression of one operator, some units in the last place off where it may be `rough`;
    raises CompileError for one that has none."""
    if isinstance(op, ew.Cast):
        return cast(args[0], dtypes[0], result)
    rule = EMIT.get(type(op))
    if rough and result != "float64":
        rule = ROUGH.get(type(op), rule)
    if rule is None:
        raise CompileError(f"cuda has no code for {op}; give it a `lower`, or an entry in EMIT")
    return rule(op, dtypes[1] if isinstance(op, ew.Where) else dtypes[0], args)


def _infix(symbol: str) -> Emit:
    return lambda op, dtype, args: f"{args[0]} {symbol} {args[1]}"


def _compare(symbol: str) -> Emit:
    def rule(op: Op, dtype: str, args: list[str]) -> str:
        # Triton's one-bit integers are signed: True would be less than False.
        a, b = (f"{x}.to(tl.int8)" if dtype == "bool" else x for x in args)
        return f"{a} {symbol} {b}"

    return rule


def extreme(kind: str, dtype: str, a: str, b: str) -> str:
    """max or min: NaN where either side is."""
    if dtype == "bool":
        return f"{a} {'|' if kind == 'max' else '&'} {b}"
    name = "tl.maximum" if kind == "max" else "tl.minimum"
    nan = ", propagate_nan=tl.PropagateNan.ALL" if is_float(dtype) else ""
    return f"{name}({a}, {b}{nan})"


def _neg(op: Op, dtype: str, args: list[str]) -> str:
    return f"-{args[0]}" if is_float(dtype) else f"{full(0, dtype)} - {args[0]}"


def _abs(op: Op, dtype: str, args: list[str]) -> str:
    return args[0] if dtype in UNSIGNED else f"tl.abs({args[0]})"


def _sign(op: Op, dtype: str, args: list[str]) -> str:
    (x,) = args
    one, minus = full(1, dtype), full(-1 if dtype not in UNSIGNED else 0, dtype)
    below = x if dtype in UNSIGNED else f"tl.where({x} < 0, {minus}, {x})"
    return f"tl.where({x} > 0, {one}, {below})"


def _div(op: Op, dtype: str, args: list[str]) -> str:
    a, b = args
    if dtype == "float64":
        return f"{a} / {b}"
    if is_float(dtype):
        return f"tl.math.div_rn({a}, {b})"
    zero = full(0, dtype)
    safe = f"tl.where({b} == 0, {full(1, dtype)}, {b})"
    quotient = f"{a} // {safe}"
    if dtype not in UNSIGNED:
        # The least number over -1 overflows: it is its own negative.
        safe = f"tl.where(({b} == 0) | ({b} == -1), {full(1, dtype)}, {b})"
        quotient = f"tl.where({b} == -1, {zero} - {a}, {a} // {safe})"
    return f"tl.where({b} == 0, {zero}, {quotient})"


def _mod(op: Op, dtype: str, args: list[str]) -> str:
    assert isinstance(op, ew.Mod)
    a, b = args
    zero = full(0, dtype)
    if is_float(dtype):
        rest = f"libdevice.fmod({a}, {b})"
        if op.truncated:
            return rest
        wrong = f"({rest} != 0) & (({rest} < 0) != ({b} < 0))"
        return f"tl.where({wrong}, {rest} + {b}, {rest})"
    bad = f"{b} == 0" if dtype in UNSIGNED else f"({b} == 0) | ({b} == -1)"
    rest = f"({a} % tl.where({bad}, {full(1, dtype)}, {b}))"
    if dtype in UNSIGNED or op.truncated:
        return f"tl.where({bad}, {zero}, {rest})"
    fixed = f"tl.where(({rest} != 0) & (({rest} < 0) != ({b} < 0)), {rest} + {b}, {rest})"
    return f"tl.where({bad}, {zero}, {fixed})"


def _shift(op: Op, dtype: str, args: list[str]) -> str:
    assert isinstance(op, ew.Shift)
    x, amount = args
    width = NUMPY_DTYPES[dtype].itemsize * 8
    inside = f"({amount} >= 0) & ({amount} < {width})"
    if not op.left and dtype not in UNSIGNED:
        # All the way to the right only the sign is left.
        return f"{x} >> tl.where({inside}, {amount}, {full(width - 1, dtype)})"
    safe = f"tl.where({inside}, {amount}, {full(0, dtype)})"
    return f"tl.where({inside}, {x} {'<<' if op.left else '>>'} {safe}, {full(0, dtype)})"


def _is_inf(op: Op, dtype: str, args: list[str]) -> str:
    assert isinstance(op, ew.IsInf)
    tests = [f'({args[0]} == float("inf"))'] * op.positive
    tests += [f'({args[0]} == float("-inf"))'] * op.negative
    return " | ".join(tests) or full(False, "bool")


def _pow(op: Op, dtype: str, args: list[str]) -> str:
    if not is_float(dtype):
        return f"_{'unsigned_' * (dtype in UNSIGNED)}power({args[0]}, {args[1]})"
    return f"libdevice.pow({args[0]}, {args[1]})"


def power_of(value: float, dtype: str, x: str) -> str | None:
    """x to a power that is known, where multiplications make it."""
    if not is_float(dtype):
        return None
    if value in (1.0, 2.0, 3.0):
        return " * ".join([x] * int(value))
    return (
        f"tl.math.div_rn({full(1, dtype)}, {x})" if value == -1.0 and dtype != "float64" else None
    )


def _bit_cast(op: Op, dtype: str, args: list[str]) -> str:
    assert isinstance(op, BitCast)
    bits = f"({to_storage(args[0], dtype)}).to({STORAGE[op.to]}, bitcast=True)"
    return to_compute(bits, op.to)


def _rounding(name: str) -> Emit:
    return lambda op, dtype, args: f"{name}({args[0]})" if is_float(dtype) else args[0]


def _function(name: str) -> Emit:
    return lambda op, dtype, args: f"{name}({', '.join(args)})"


def _sqrt(op: Op, dtype: str, args: list[str]) -> str:
    return f"tl.sqrt({args[0]})" if dtype == "float64" else f"tl.sqrt_rn({args[0]})"


EMIT: dict[type[Op], Emit] = {
    ew.Add: _infix("+"),
    ew.Sub: _infix("-"),
    ew.Mul: _infix("*"),
    ew.Div: _div,
    ew.Mod: _mod,
    ew.Pow: _pow,
    ew.Max: lambda op, dtype, args: extreme("max", dtype, *args),
    ew.Min: lambda op, dtype, args: extreme("min", dtype, *args),
    ew.Neg: _neg,
    ew.Abs: _abs,
    ew.Sign: _sign,
    ew.Floor: _rounding("tl.floor"),
    ew.Ceil: _rounding("tl.ceil"),
    ew.Round: _rounding("libdevice.rint"),
    ew.Sqrt: _sqrt,
    ew.Exp: _function("libdevice.exp"),
    ew.Log: _function("libdevice.log"),
    ew.Tanh: _function("libdevice.tanh"),
    ew.Erf: _function("libdevice.erf"),
    ew.Sin: _function("libdevice.sin"),
    ew.Cos: _function("libdevice.cos"),
    ew.Atan: _function("libdevice.atan"),
    ew.Not: lambda op, dtype, args: f"{args[0]} == 0",
    ew.BitwiseNot: lambda op, dtype, args: f"~{args[0]}",
    ew.And: _infix("&"),
    ew.Or: _infix("|"),
    ew.Xor: _infix("^"),
    ew.BitwiseAnd: _infix("&"),
    ew.BitwiseOr: _infix("|"),
    ew.BitwiseXor: _infix("^"),
    ew.Shift: _shift,
    ew.Less: _compare("<"),
    ew.LessOrEqual: _compare("<="),
    ew.Equal: _compare("=="),
    ew.IsNaN: lambda op, dtype, args: f"{args[0]} != {args[0]}",
    ew.IsInf: _is_inf,
    BitCast: _bit_cast,
    ew.Where: lambda op, dtype, args: f"tl.where({args[0]}, {args[1]}, {args[2]})",
}


ROUGH: dict[type[Op], Emit] = {
    ew.Div: lambda op, dtype, args: " / ".join(args) if is_float(dtype) else _div(op, dtype, args),
    ew.Exp: _function("tl.exp"),
    ew.Sqrt: _function("tl.sqrt"),
}
"""What the hardware approximates: far closer than a 16-bit float tells apart."""

EXACT = (ew.Floor, ew.Ceil, ew.Round, ew.Sign, ew.Less, ew.LessOrEqual, ew.Equal, ew.Mod)
"""Where a small error may become a large one."""


def cast(x: str, source: str, target: str) -> str:
    """An element of one dtype as another, as ONNX's Cast has it (floats to integers toward 0)."""
    if is_float(target):
        wide = f"{x}.to({COMPUTE[target]})"
        # Only float32 becomes a bfloat16 everywhere; the rest of the bits would not matter.
        return round_to(x if target == "float16" else wide, target)
    if target == "bool":
        return x if source == "bool" else f"{x} != 0"
    if is_float(source):
        return _float_to_integer(x, target)
    return f"{x}.to({COMPUTE[target]})"


def _float_to_integer(x: str, target: str) -> str:
    """Through a wide integer, as processors do: what is out of range wraps."""
    if target == "uint64":
        big = f"({x} - 9223372036854775808.0).to(tl.int64) ^ (-9223372036854775808)"
        return f"tl.where({x} >= 9223372036854775808.0, {big}, {x}.to(tl.int64)).to(tl.uint64)"
    wide = "tl.int64" if target in ("int64", "uint32") else "tl.int32"
    return f"{x}.to({wide}).to({COMPUTE[target]})"


POWERS = """\
@triton.jit
def _unsigned_power(base, exponent):
    # By squaring, wrapping around; after 64 steps every bit has been seen.
    result = tl.zeros_like(base + exponent) + 1
    square = base + tl.zeros_like(exponent)
    for _ in range(64):
        result = tl.where((exponent & 1) != 0, result * square, result)
        square = square * square
        exponent = exponent >> 1
    return result


@triton.jit
def _power(base, exponent):
    # Below an exponent of 0 only 1 and -1 leave something.
    result = _unsigned_power(base, exponent)
    kept = tl.where((base == 1) | (base == -1), result, result * 0)
    return tl.where(exponent < 0, kept, result)


"""

ERROR_FUNCTION = """\
@triton.jit
def _one_and_erf(x):
    # 1 + erf(x) to 2e-7: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
    a = tl.abs(x)
    y = 1.0 + 0.3275911 * a
    t = tl.math.rsqrt(y * y)
    p = 1.421413741 + t * (-1.453152027 + t * 1.061405429)
    q = t * (0.254829592 + t * (-0.284496736 + t * p)) * tl.exp2(a * a * -1.4426950408889634)
    return tl.where(x >= 0, 2.0 - q, q)


"""

MIXED = """\
@triton.jit
def _maximum(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _minimum(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _product(a, b):
    return a * b


@triton.jit
def _both(a, b):
    return a & b


@triton.jit
def _either(a, b):
    return a | b


"""

ARGUMENTS = {
    f"_arg{kind}{last}": f"""\
@triton.jit
def _arg{kind}{last}(a, i, b, j):
    better = (b {sign} a) | ((b == a) & (j {order} i))
    return tl.where(better, b, a), tl.where(better, j, i)


"""
    for kind, sign in (("max", ">"), ("min", "<"))
    for last, order in (("", "<"), ("_last", ">"))
}


def helpers(text: str) -> str:
    """The functions that a text calls, defined."""
    found = POWERS if "_power(" in text else ""
    found += ERROR_FUNCTION * ("_one_and_erf(" in text)
    if any(name in text for name in ("_maximum", "_minimum", "_product", "_both", "_either")):
        found += MIXED
    return found + "".join(v for k, v in ARGUMENTS.items() if f"{k})" in text or f"{k}(" in text)
