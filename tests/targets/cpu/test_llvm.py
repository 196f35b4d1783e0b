"""The text emitter: what it writes is accepted by LLVM and computes what was asked for."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import ml_dtypes
import numpy as np
import pytest

from whet.targets.cpu.llvm import (
    Function,
    Module,
    array_literal,
    element_bytes,
    literal,
    mask_type,
    split_type,
    suffix,
    vector,
)


def compiled(module: Module, name: str, *types: Any, returns: Any = None) -> Callable[..., Any]:
    """A callable of the module's function `name`."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten()
    )
    parsed = llvm.parse_assembly(module.text())
    parsed.verify()
    engine = llvm.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    call = ctypes.CFUNCTYPE(returns, *types)(engine.get_function_address(name))
    call.engine = engine  # type: ignore[attr-defined]
    return call


def over_vectors(
    type: str, body: Callable[[Function, str, str], str], x: np.ndarray, y: np.ndarray
) -> np.ndarray:
    """body(x, y) of one vector each, written over x."""
    module = Module(512)
    f = module.function("apply", {"x": "ptr", "y": "ptr"})
    a, b = (f.load(type, p) for p in f.parameters)
    f.store(type, body(f, a, b), f.parameters[0])
    f.end()
    x = x.copy()
    compiled(module, "apply", ctypes.c_void_p, ctypes.c_void_p)(x.ctypes.data, y.ctypes.data)
    return x


def test_types_are_taken_apart_and_named_as_llvm_does() -> None:
    assert vector("float", 16) == "<16 x float>" and vector("i8", 1) == "i8"
    assert split_type("<8 x bfloat>") == ("bfloat", 8) and split_type("ptr") == ("ptr", 1)
    assert [element_bytes(t) for t in ("<4 x i1>", "i16", "<2 x double>", "half", "ptr")] == [
        1,
        2,
        8,
        2,
        8,
    ]
    assert [suffix(t) for t in ("<16 x float>", "i64", "<4 x bfloat>", "ptr")] == [
        "v16f32",
        "i64",
        "v4bf16",
        "p0",
    ]
    assert mask_type("<4 x float>") == "<4 x i1>" and mask_type("float") == "i1"


@pytest.mark.parametrize(
    ("type", "dtype"),
    [
        ("float", np.float32),
        ("double", np.float64),
        ("half", np.float16),
        ("bfloat", ml_dtypes.bfloat16),
        ("i8", np.int8),
        ("i64", np.int64),
    ],
)
@pytest.mark.parametrize("lanes", [1, 3, 8])
def test_literals_keep_every_bit(type: str, dtype: Any, lanes: int) -> None:
    values = (
        [0, 1, -7] if type.startswith("i") else [0.1, -0.0, np.inf, -np.inf, np.nan, 1e-7, 3e38]
    )
    whole = vector(type, lanes)
    for value in values:
        with np.errstate(over="ignore"):
            want = np.full(lanes, value, dtype)
        text = literal(whole, value)
        got = over_vectors(whole, lambda f, a, b, text=text: text, np.zeros(lanes, dtype), want)  # type: ignore[misc]
        np.testing.assert_array_equal(got.view(np.uint8), want.view(np.uint8))


def test_a_loop_carries_values_and_may_run_no_times() -> None:
    module = Module()
    f = module.function("total", {"x": "ptr", "n": "i64"}, returns="float")
    x, n = f.parameters

    def body(i: str, sums: list[str]) -> list[str]:
        return [f.binary("fadd", "float", sums[0], f.load("float", x, f.mul(i, 4)))]

    f.end(f"{f.loop(0, n, 1, body, [('float', literal('float', 0.5))])[0]}")
    total = compiled(module, "total", ctypes.c_void_p, ctypes.c_int64, returns=ctypes.c_float)
    values = np.arange(10, dtype=np.float32)
    assert [total(values.ctypes.data, n) for n in (0, 1, 10)] == [0.5, 0.5, 45.5]


def test_nested_loops_and_branches_merge_their_values() -> None:
    module = Module()
    f = module.function("pairs", {"n": "i64"}, returns="i64")

    def outer(i: str, c: list[str]) -> list[str]:
        def inner(j: str, d: list[str]) -> list[str]:
            less = f.compare("slt", "i64", i, j)
            return f.when(less, lambda: [str(f.add(d[0], 1))], lambda: [d[0]], ["i64"])

        return f.loop(0, f.parameters[0], 1, inner, [("i64", c[0])])

    f.end(f.loop(0, f.parameters[0], 1, outer, [("i64", "0")])[0])
    pairs = compiled(module, "pairs", ctypes.c_int64, returns=ctypes.c_int64)
    assert [pairs(n) for n in (0, 1, 5, 9)] == [0, 0, 10, 36]


@pytest.mark.parametrize("lanes", [1, 4, 8, 12, 16])
def test_vector_instructions(lanes: int) -> None:
    rng = np.random.default_rng(lanes)
    x, y = rng.standard_normal((2, lanes)).astype(np.float32)
    type = vector("float", lanes)

    def larger(f: Function, a: str, b: str) -> str:
        return f.select(f.compare("ogt", type, a, b), type, a, b)

    def rounded(f: Function, a: str, b: str) -> str:
        half = vector("half", lanes)
        return f.convert("fpext", f.convert("fptrunc", a, type, half), half, type)

    def first(f: Function, a: str, b: str) -> str:
        return f.splat(type, f.extract(type, a, 0))

    np.testing.assert_array_equal(over_vectors(type, larger, x, y), np.maximum(x, y))
    np.testing.assert_array_equal(
        over_vectors(type, rounded, x, y), x.astype(np.float16).astype(np.float32)
    )
    np.testing.assert_array_equal(over_vectors(type, first, x, y), np.full(lanes, x[0]))
    fused = over_vectors(type, lambda f, a, b: f.fma(type, a, b, b), x, y)
    np.testing.assert_allclose(fused, x * y + y, rtol=1e-6)


def test_shuffles_and_lanes() -> None:
    type = "<4 x float>"
    x, y = np.arange(4, dtype=np.float32), np.arange(4, 8, dtype=np.float32)
    mixed = over_vectors(type, lambda f, a, b: f.shuffle(type, a, b, [7, 0, 5, 2]), x, y)
    np.testing.assert_array_equal(mixed, [7, 0, 5, 2])
    patched = over_vectors(type, lambda f, a, b: f.insert(type, a, literal("float", 9), 2), x, y)
    np.testing.assert_array_equal(patched, [0, 1, 9, 3])
    listed = over_vectors(type, lambda f, a, b: array_literal(type, [4, 3, 2, 1]), x, y)
    np.testing.assert_array_equal(listed, [4, 3, 2, 1])


def test_masked_memory_leaves_the_other_lanes_alone() -> None:
    type, module = "<8 x float>", Module()
    f = module.function("copy", {"x": "ptr", "y": "ptr"})
    mask = array_literal("<8 x i1>", [True] * 5 + [False] * 3)
    f.masked_store(type, f.masked_load(type, mask, f.parameters[0], 4), mask, f.parameters[1])
    f.end()
    x, y = np.arange(9, dtype=np.float32), np.full(8, np.nan, np.float32)
    compiled(module, "copy", ctypes.c_void_p, ctypes.c_void_p)(x.ctypes.data, y.ctypes.data)
    np.testing.assert_array_equal(y, [1, 2, 3, 4, 5, np.nan, np.nan, np.nan])


def test_functions_call_each_other_and_declarations_appear_once() -> None:
    module = Module()
    inner = module.function("twice", {"x": "double"}, "double", "internal", "noinline")
    inner.end(inner.binary("fadd", "double", inner.parameters[0], inner.parameters[0]))
    f = module.function("root", {"x": "double"}, "double")
    table = module.constant("table", "[2 x double]", "[double 1.0, double 3.0]")
    doubled = f.call("double", "twice", [("double", f.parameters[0])])
    third = f.fma("double", doubled, f.load("double", table, 8), f.load("double", table))
    f.prefetch(table)
    f.fence()
    f.end(f.intrinsic("llvm.sqrt", "double", f.fma("double", third, third, literal("double", 0))))
    assert module.text().count("declare double @llvm.fmuladd.f64") == 1
    assert "declare double @twice" not in module.text()
    root = compiled(module, "root", ctypes.c_double, returns=ctypes.c_double)
    assert root(2.0) == 13.0


def test_known_indices_are_folded() -> None:
    f = Module().function("f", {"i": "i64"})
    (i,) = f.parameters
    assert (f.add(2, 3), f.sub(2, 3), f.mul(4, 5), f.div(17, 5), f.rem(17, 5)) == (5, -1, 20, 3, 2)
    assert (f.min(2, 3), f.max(2, 3)) == (2, 3)
    assert (f.add(i, 0), f.add(0, i), f.mul(i, 1), f.mul(i, 0), f.div(i, 1)) == (i, i, i, 0, i)
    assert len(f.lines) == 2


def test_mistakes_are_refused() -> None:
    module = Module()
    module.function("f", {})
    with pytest.raises(ValueError, match="already has a function called f"):
        module.function("f", {})
    with pytest.raises(ValueError, match="f has no end"):
        module.text()
