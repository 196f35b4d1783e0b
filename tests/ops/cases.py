"""THE table of operators: each row is crossed with every target, and must agree with `reference`.

To add an operator, add a row: a name, the operator (or a function of Values), its inputs, and where
four roundings are not enough, how many. `rows` repeats it for each of several dtypes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from tests.ops.draw import (
    Case,
    Spec,
    bits,
    codes,
    distinct,
    flags,
    ints,
    powers,
    special,
    strings,
    ties,
    x,
)
from tests.ops.network_cases import network
from whet.ops import bits as bits_of
from whet.ops import cast, gather, index, ml, movement, quantize, random, reduce, text
from whet.ops import elementwise as ew
from whet.ops import transcendental as tr

FLOATING = ("float32", "float64", "float16", "bfloat16")
NUMERIC = (*FLOATING, "int8", "uint8", "int32", "int64")
INTEGER = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


def row(name: str, build: Callable[..., Any], *inputs: Spec, **bounds: Any) -> Case:
    """A row for the dtypes that its inputs have."""
    return Case(name, build, inputs, **bounds)


def rows(
    dtypes: tuple[str, ...], name: str, build: Callable[..., Any], *inputs: Spec, **bounds: Any
) -> Iterator[Case]:
    """A row for each of the dtypes."""
    return (Case(name, build, inputs, **bounds).of_dtype(dtype) for dtype in dtypes)


def elementwise() -> Iterator[Case]:
    a, b = x(3, 5), x(3, 5)
    for op in (ew.Neg(), ew.Abs(), ew.Sign()):
        yield from rows(NUMERIC, _name(op), op, a)
    for op in (ew.Add(), ew.Sub(), ew.Mul(), ew.Max(), ew.Min()):
        yield from rows(NUMERIC, _name(op), op, a, b)
        yield from rows(NUMERIC, f"{_name(op)}-broadcast", op, x(4, 1, 5), x(3, 1))
        yield from rows(FLOATING, f"{_name(op)}-special", op, special(50), special(50))
    for op in (ew.Less(), ew.LessOrEqual(), ew.Equal()):
        yield from rows(NUMERIC, _name(op), op, x(40, low=-2, high=2), x(40, low=-2, high=2))
        yield from rows(FLOATING, f"{_name(op)}-special", op, special(50), special(50))
    yield from rows(NUMERIC, "div", ew.Div(), a, x(3, 5, low=1, high=5))
    yield from rows(INTEGER, "div-zero", ew.Div(), x(40, high=99), x(40, low=-2, high=2))
    for truncated in (False, True):
        op = ew.Mod(truncated)
        yield from rows(
            NUMERIC, f"mod-{truncated}", op, x(40, low=-9, high=9), x(40, low=1, high=5)
        )
        yield from rows(INTEGER, f"mod-zero-{truncated}", op, x(40, high=99), x(40, low=-3, high=3))
    yield from rows(FLOATING, "pow", ew.Pow(), x(3, 5, low=0.1), x(3, 5))
    yield row("pow-integer", ew.Pow(), ints(30), ints(30))
    yield row("pow-mixed", ew.Pow(), x(30), ints(30, low=0))
    for dtype in INTEGER:
        for left in (False, True):
            amount = ints(40, low=0, high=70, dtype=dtype)
            yield row(f"shift-{left}-{dtype}", ew.Shift(left), bits(40, dtype=dtype), amount)
        for op in (ew.BitwiseAnd(), ew.BitwiseOr(), ew.BitwiseXor()):
            yield row(f"{_name(op)}-{dtype}", op, bits(40, dtype=dtype), bits(40, dtype=dtype))
        yield row(f"bitwisenot-{dtype}", ew.BitwiseNot(), bits(40, dtype=dtype))
    for op in (ew.And(), ew.Or(), ew.Xor()):
        yield row(_name(op), op, flags(40), flags(40))
    yield row("not", ew.Not(), flags(40))
    yield from rows(NUMERIC, "where", ew.Where(), flags(3, 1), a, x(5))
    yield row("where-strings", ew.Where(), flags(40), strings(40), strings(1))
    yield row("equal-strings", ew.Equal(), strings(40), strings(40))
    yield from rows(NUMERIC, "clip", ew.Clip(), a, x(low=-1, high=0), x(low=0, high=1))
    yield from rows(FLOATING, "isnan", ew.IsNaN(), special(50))
    yield from rows(FLOATING, "isinf-negative", ew.IsInf(positive=False), special(50))
    yield from rows(FLOATING, "isinf", ew.IsInf(), special(50))


def _name(op: object) -> str:
    return type(op).__name__.lower()


def transcendental() -> Iterator[Case]:
    wide = x(300, low=-20, high=20)
    for op in (ew.Floor(), ew.Ceil(), ew.Round(), ew.Relu(), ew.Erf(), ew.Tanh(), ew.Sigmoid()):
        yield from rows(FLOATING, _name(op), op, wide)
        yield from rows(FLOATING, f"{_name(op)}-special", op, special(50))
    # exp(-1.7 x) has the rounding of its argument times the argument.
    yield from rows(FLOATING, "silu", ew.Silu(1.7), wide, ulps=40)
    for op in (ew.Exp(), ew.Atan(), tr.Asinh(), tr.Softplus()):
        yield from rows(FLOATING, _name(op), op, wide, ulps=6)
        yield from rows(FLOATING, f"{_name(op)}-special", op, special(50), ulps=6)
    # Near 1 + erf = 0 the form in Erf loses what exp would keep: absolute, not relative, precision.
    for op in (ew.Gelu(), ew.Gelu(approximate=True)):
        yield from rows(FLOATING, f"gelu-{op.approximate}", op, wide, sums=2)
    for op in (ew.Sqrt(), ew.Log()):
        yield from rows(FLOATING, _name(op), op, x(300, low=0, high=50))
        yield from rows(FLOATING, f"{_name(op)}-special", op, special(50))
    for op in (ew.Sin(), ew.Cos()):
        yield from rows(FLOATING, _name(op), op, wide, sums=1)
    yield from rows(FLOATING, "tan", tr.Tan(), x(300, low=-1.5, high=1.5), ulps=6)
    for op in (tr.Asin(), tr.Acos(), tr.Atanh()):
        yield from rows(FLOATING, _name(op), op, x(300, low=-0.999, high=0.999), ulps=8)
        yield from rows(FLOATING, f"{_name(op)}-special", op, special(50), ulps=8)
    yield from rows(FLOATING, "acosh", tr.Acosh(), x(300, low=1, high=50), ulps=8)
    yield from rows(FLOATING, "acosh-special", tr.Acosh(), special(50), ulps=8)
    for op in (tr.Sinh(), tr.Cosh(), tr.Expm1()):
        yield from rows(FLOATING, _name(op), op, x(300, low=-9, high=9), ulps=8)
        yield from rows(FLOATING, f"{_name(op)}-special", op, special(50), ulps=8)
        yield from rows(FLOATING, f"{_name(op)}-tiny", op, x(300, low=-1e-3, high=1e-3), ulps=8)
    yield from rows(FLOATING, "log1p", tr.Log1p(), x(300, low=-0.99, high=30), ulps=8)
    yield from rows(FLOATING, "log1p-tiny", tr.Log1p(), x(300, low=-1e-3, high=1e-3), ulps=8)
    yield from rows(FLOATING, "log1p-special", tr.Log1p(), special(50), ulps=8)


def empty() -> Iterator[Case]:
    """Tensors of no elements, and of one."""
    for op in (ew.Add(), ew.Less(), ew.Max()):
        yield from rows(NUMERIC, f"{_name(op)}-empty", op, x(0, 3), x(3))
        yield from rows(NUMERIC, f"{_name(op)}-scalar", op, x(), x())
    for op in (ew.Exp(), ew.Erf(), tr.Asinh(), reduce.Softmax(), reduce.LogSoftmax(0)):
        yield from rows(FLOATING, f"{_name(op)}-empty", op, x(0, 3))
    yield from rows(NUMERIC, "where-empty", ew.Where(), flags(0, 1), x(3), x(1, 1))
    yield row("cast-empty", cast.Cast("int8"), x(2, 0))
    yield row("transpose-empty", movement.Transpose((1, 0)), x(0, 3))
    yield row("reshape-empty", movement.Reshape((3, 0, 2)), x(0, 3))
    yield row("concat-empty", movement.Concat(0), x(0, 3), x(0, 3))
    yield row("pad-empty", movement.Pad((2, 0), (1, 0)), x(0, 3), x())
    yield row("gather-empty", movement.Gather(0), x(4, 3), ints(0, 2))
    yield row("gatherelements-empty", gather.GatherElements(0), x(4, 3), ints(0, 3))
    yield row("gathernd-empty", gather.GatherND(), x(4, 3), ints(0, 1))
    yield row("scatternd-empty", gather.ScatterND("sum"), x(4, 3), ints(0, 1), x(0, 3))
    for kind in ("sum", "prod", "max", "min"):
        yield from rows(NUMERIC, f"reduce-{kind}-nothing", reduce.Reduce(kind, (0, 1)), x(0, 3))
    yield row("cumulative-empty", reduce.Cumulative("sum", 0), x(0, 3))
    yield row("layernorm-empty", reduce.LayerNorm(), x(0, 3), x(3), x(3))


def casts() -> Iterator[Case]:
    small = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float4_e2m1fn")
    for to in (*NUMERIC, "uint16", "uint32", "bool", "int4", "uint4", "int2", "uint2", *small):
        yield from rows(FLOATING, f"cast-{to}", cast.Cast(to), x(40, low=0, high=3))
        yield from rows(("int8", "uint8", "int64"), f"cast-{to}", cast.Cast(to), x(40, high=100))
        yield row(f"cast-{to}-bool", cast.Cast(to), flags(40))
    for to in small[:4]:
        for saturate in (False, True):
            yield from rows(FLOATING, f"cast-{to}-{saturate}", cast.Cast(to, saturate), special(60))
    for mode in ("up", "down", "nearest"):
        for saturate in (False, True):
            op = cast.Cast("float8_e8m0fnu", saturate, mode)
            name = f"cast-e8m0-{mode}-{saturate}"
            yield from rows(FLOATING, name, op, x(60, low=1e-6, high=1e3))
            yield row(f"{name}-tiny", op, powers(90, low=-130, high=-120))
            yield row(f"{name}-huge", op, powers(90, low=120, high=127))
    # Every number of the dtype, and what lies between: ties, steps at powers of two, the smallest.
    for to in small:
        for saturate in (False, True):
            name, op = f"cast-{to}-everywhere-{saturate}", cast.Cast(to, saturate)
            yield from rows(("float32", "float64"), name, op, powers(600, low=-18, high=17))
            yield row(f"cast-{to}-ties-{saturate}", op, ties(600))
    for dtype in (*small, "float8_e8m0fnu", "int4", "uint4", "int2", "uint2"):
        for to in ("float32", "float16", "bfloat16", "bool", "float8_e5m2"):
            yield row(f"cast-every-{dtype}-{to}", cast.Cast(to), codes(dtype))
    for dtype in ("float4_e2m1fn", "int4", "uint4", "int2", "uint2"):
        for to in ("int32", "uint8", "int4", "uint2"):
            yield row(f"cast-every-{dtype}-{to}", cast.Cast(to), codes(dtype))
    for source, to in [
        ("int32", "float32"),
        ("uint8", "int8"),
        ("int4", "uint4"),
        ("int64", "float64"),
    ]:
        yield row(f"bitcast-{source}-{to}", bits_of.BitCast(to), bits(30, dtype=source))
    yield row("cast-text", cast.Cast("float32"), strings(20, words="1 -2.5 1e-3 INF NaN"))
    yield row("cast-to-text", cast.Cast("string"), ints(20))


def moves() -> Iterator[Case]:
    a = x(3, 4, 5)
    yield row("sizes", lambda v: movement.Sizes(v.shape)(), a)
    yield row("iota", lambda v: index.Iota(v.shape[0])(), x(7))
    yield from rows(
        NUMERIC,
        "reshape",
        lambda v: movement.reshape(v, v.shape[0] * 4, 5),
        x(3, 4, 5),
        named_sizes=False,
    )
    yield from rows(NUMERIC, "transpose", movement.Transpose((2, 0, 1)), a)
    yield from rows(NUMERIC, "broadcast", movement.Broadcast((4, 3, 5)), x(3, 1), named_sizes=False)
    yield from rows(NUMERIC, "concat", movement.Concat(1), x(3, 4), x(3, 2), x(3, 0))
    for axis in (1, 2):
        join = movement.Concat(axis)
        parts = [x(2, n, 3) if axis == 1 else x(2, 3, n) for n in (40, 9, 17)]
        shift = x(1, 66, 1) if axis == 1 else x(1, 1, 66)
        yield row(f"joined-{axis}", lambda b, *a, join=join: ew.Relu()(join(*a) + b), shift, *parts)
        mean = reduce.Reduce("sum", (1,))
        yield row(f"joined-sum-{axis}", lambda *a, j=join, m=mean: m(ew.Abs()(j(*a))), *parts)
    yield row("joined-few", lambda a, b: ew.Neg()(movement.Concat(1)(a, b)), x(5, 3), x(5, 30))
    yield row("concat-strings", movement.Concat(0), strings(3), strings(2))
    slices = {
        "forward": ((1, 0, 2), (2, 4, 3), (1, 1, 1)),
        "strided": ((0, 1, 0), (2, 2, 2), (2, 2, 3)),
        "backward": ((2, 3, 4), (3, 2, 5), (-1, -2, -1)),
        "empty": ((0, 4, 0), (3, 0, 5), (1, 1, 1)),
    }
    for name, args in slices.items():
        yield from rows(NUMERIC, f"slice-{name}", movement.Slice(*args), a, named_sizes=False)
    yield row("reverse", movement.Reverse((0, 2)), a)
    for mode in ("constant", "reflect", "edge", "wrap"):
        op = movement.Pad((1, 0, 7), (0, 3, 6), mode)
        yield from rows(NUMERIC, f"pad-{mode}", op, a, x())
    yield row("pad-flags", movement.Pad((1,), (2,)), flags(4), flags())


def gathers() -> Iterator[Case]:
    a = x(4, 5, 6)
    for axis in (0, 1, -1):
        at = ints(2, 3, low=-4, high=3)
        yield from rows(NUMERIC, f"gather-{axis}", movement.Gather(axis), a, at)
    yield row("gather-scalar", movement.Gather(1), a, ints(low=-5, high=4, dtype="int32"))
    yield row("gather-strings", movement.Gather(0), strings(5), ints(3, low=-5, high=4))
    for axis in (0, 2):
        at = ints(4, 3, 6, low=-4, high=3)
        yield from rows(NUMERIC, f"gatherelements-{axis}", gather.GatherElements(axis), a, at)
        for kind in (None, "sum", "prod", "max", "min"):
            places = distinct(4, 5, 2, below=6) if axis == 2 else ints(1, 5, 6, low=-4, high=3)
            update = x(*places.shape)
            op = gather.ScatterElements(axis, kind)
            yield from rows(NUMERIC, f"scatterelements-{axis}-{kind}", op, a, places, update)
    repeated = ints(9, 5, 6, low=-4, high=3), x(9, 5, 6, low=0.5, high=1.5)
    for kind in ("sum", "max"):
        op = gather.ScatterElements(0, kind)
        yield from rows(FLOATING, f"scatterelements-repeated-{kind}", op, a, *repeated, sums=8)
    static = {"named_sizes": False}
    yield from rows(NUMERIC, "gathernd", gather.GatherND(), a, ints(3, 2, low=-4, high=3), **static)
    yield row("gathernd-all", gather.GatherND(), a, ints(2, 3, 3, low=-4, high=3), **static)
    yield row("gathernd-batch", gather.GatherND(1), a, ints(4, 2, 1, low=-5, high=4), **static)
    yield row("gathernd-batches", gather.GatherND(2), a, ints(4, 5, 1, low=-6, high=5), **static)
    for kind in (None, "sum", "prod", "max", "min"):
        places = ints(1, 2, low=-4, high=3)
        yield from rows(
            NUMERIC, f"scatternd-{kind}", gather.ScatterND(kind), a, places, x(1, 6), **static
        )


def reductions() -> Iterator[Case]:
    for kind in ("sum", "max", "min"):
        for axes in ((0,), (1, 2), (0, 1, 2)):
            op = reduce.Reduce(kind, axes)
            yield from rows(
                NUMERIC,
                f"reduce-{kind}-{axes}",
                op,
                x(5, 6, 7),
                sums=64,
                terms=float(kind == "sum"),
            )
        yield from rows(NUMERIC, f"reduce-{kind}-empty", reduce.Reduce(kind, (1,)), x(3, 0, 2))
    for kind in ("sum", "max", "min"):
        yield row(f"reduce-{kind}-long", reduce.Reduce(kind, (1,)), x(3, 53, 21), sums=53)
        yield row(
            f"reduce-{kind}-columns", reduce.Reduce(kind, (1, 2)), x(1, 33, 41, 27), sums=1353
        )
    yield row("reduce-max-nan-columns", reduce.Reduce("max", (0,)), special(200, 30))
    yield from rows(NUMERIC, "reduce-prod", reduce.Reduce("prod", (1,)), x(3, 6), ulps=8)
    yield from rows(FLOATING, "reduce-max-special", reduce.Reduce("max", (1,)), special(30, 4))
    for kind in ("max", "min"):
        for last in (False, True):
            op = reduce.ArgReduce(kind, 1, last)
            yield from rows(NUMERIC, f"argreduce-{kind}-{last}", op, x(5, 9, low=-2, high=2))
    for kind in ("sum", "prod"):
        for exclusive in (False, True):
            for reverse in (False, True):
                op = reduce.Cumulative(kind, 1, exclusive, reverse)
                name = f"cumulative-{kind}-{exclusive}-{reverse}"
                yield from rows(NUMERIC, name, op, x(3, 6, low=0.5, high=2), ulps=8, sums=8)
                near = x(2, 131, 3, low=0.9, high=1.1)
                yield row(f"{name}-long", op, near, ulps=140, sums=140)
    for axis in (0, -1):
        yield from rows(FLOATING, f"softmax-{axis}", reduce.Softmax(axis), x(5, 9), ulps=8)
        yield from rows(
            FLOATING, f"logsoftmax-{axis}", reduce.LogSoftmax(axis), x(5, 9), ulps=8, sums=4
        )
    norm = x(5, 9, low=-300, high=300), x(9)
    yield from rows(FLOATING, "layernorm", reduce.LayerNorm(), *norm, x(9), ulps=8, sums=8)
    yield from rows(FLOATING, "rmsnorm", reduce.RMSNorm(), *norm, ulps=8, sums=8)


def _halves(most: float, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers half-way between two integers, mostly."""
    return np.rint(rng.uniform(-most, most, shape)) + rng.choice([0, 0.5], shape)


def quantised() -> Iterator[Case]:
    for to in ("int8", "uint8", "int16", "uint16", "int4", "uint4", "int2", "uint2"):
        info = quantize.integer_range(to)
        zero = ints(dtype=to, low=info[0] // 2, high=info[1] // 2)
        scale = x(low=0.1, high=0.5)
        yield from rows(FLOATING, f"quantize-{to}", quantize.Quantize(to), x(60), scale, zero)
        op = quantize.Dequantize("float32")
        yield row(f"dequantize-{to}", op, bits(60, dtype=to), scale, zero)
    for to in quantize.SMALL:
        for most in (40.0, 1e4, 1e20):
            shift = ints(low=-9, high=9, dtype="int32")
            halves = Spec((70,), "float32", partial(_halves, most), False)
            yield row(f"saturate-{to}-{most:g}", quantize.Saturate(to), halves, shift)
    columns = x(60, 1, low=0.1, high=0.5)
    for to in ("float8_e4m3fn", "float8_e5m2", "float4_e2m1fn"):
        yield from rows(FLOATING[:1], f"quantize-{to}", quantize.Quantize(to), x(60, 4), columns)
    yield row(
        "quantize-int32", quantize.Quantize("int8"), ints(60, high=90, dtype="int32"), x(low=0.5)
    )
    yield row(
        "dequantize-int32",
        quantize.Dequantize("float16"),
        bits(60, dtype="int32"),
        x(low=1e-9, high=1e-8),
    )


def texts() -> Iterator[Case]:
    from whet.ir.sizes import symbol

    yield row("stringconcat", text.StringConcat(), strings(3, 1), strings(4))
    size = symbol("count", 1)
    stop = ("the", "a")
    for case in ("NONE", "UPPER", "LOWER"):
        op = text.StringNormalizer(size, stop, case == "NONE", case)
        yield row(f"stringnormalizer-{case}", op, strings(9))
    words = "a,b,,c a,b a ,"
    yield row("stringsplit", text.StringSplit(symbol("parts"), ",", 2), strings(9, words=words))
    yield row("regexfullmatch", text.RegexFullMatch(r"[[:alpha:]]+\z"), strings(9, words="ab a1 é"))
    ngrams = (((1,), (2, 3), (4, 4)), (0, 2, 1), (1.0, 0.5, 2.0), (1, 2))
    for once in (False, True):
        op = text.CountNgrams(*ngrams, skips=1, once=once)
        yield row(f"countngrams-{once}", op, ints(3, 9, low=1, high=4))


def seeded() -> Iterator[Case]:
    for kind in ("uniform", "normal"):
        for dtype in ("float32", "float64"):
            op = random.Random(kind, (3, 4), dtype, seed=7)
            yield row(
                f"random-{kind}-{dtype}", lambda v, op=op: op() + ew.Cast(op.dtype)(v), x(3, 4)
            )


def learned() -> Iterator[Case]:
    names = np.array(["a", "sun", "xyz"], object)
    for default in (None, np.array(-1)):
        lookup = ml.Lookup(names, np.arange(3), default)
        words = "a sun xyz" if default is None else "a sun xyz other"
        yield row(f"lookup-{default}", lookup, strings(9, words=words))
    keys = np.array([np.nan, 1.0, 2.0], np.float32)
    numbers = ml.Lookup(keys, np.array([7, 8, 9]), np.array(0))
    yield row("lookup-numbers", numbers, ints(20, low=0, high=3, dtype="float32"))
    for kind in ("sum", "max", "min"):
        yield row(f"forest-{kind}", forest(kind), x(30, 3, low=-1, high=1))
    wins = x(5, 4, 4, low=0.1, high=0.9)
    couple = ml.CoupleProbabilities()
    yield row("coupleprobabilities", couple, wins)


def forest(kind: str) -> ml.Forest:
    """Two trees of each comparison, with a set, and leaves with none, one and two votes."""
    return ml.Forest(
        kind,
        targets=2,
        roots=np.array([0, 3, ~1]),
        features=np.array([0, 1, 2, 1, 2, 0]),
        modes=np.array([0, 1, 2, 3, 6, 5]),
        splits=np.array([0.1, 0.5, -0.2, 0.0, 0.0, 0.3], np.float32),
        yes=np.array([1, ~0, ~1, 4, ~2, ~0]),
        no=np.array([2, ~1, ~2, 5, ~3, ~3]),
        missing=np.array([True, False, True, False, True, False]),
        members=np.full((6, 2), np.nan, np.float32),
        begins=np.array([0, 1, 3, 4, 4]),
        voted=np.array([0, 0, 1, 1]),
        weights=np.array([0.5, -1.0, 2.0, 3.0], np.float32),
    )


CASES = [
    case
    for family in (
        elementwise,
        transcendental,
        empty,
        casts,
        moves,
        gathers,
        reductions,
        quantised,
        texts,
        seeded,
        learned,
        network,
    )
    for case in family()
]
