"""Casts from and to dtypes of 8 bits and fewer, in kernels: every code, and every edge."""

from __future__ import annotations

import secrets

import numpy as np
import pytest

from tests.levels import LEVELS, architecture
from whet.engine.weights import ImportedWeights
from whet.ir.graph import Graph, Input, make
from whet.ir.types import FLOATS, NUMPY_DTYPES, TensorType, dtype_name
from whet.ops.cast import FEW_BITS, PACKED_BITS, Cast
from whet.runtime.program import Runner
from whet.targets.cpu.device import Device

SMALL = sorted(FEW_BITS)


def on_cpu(level: str, op: Cast, x: np.ndarray) -> np.ndarray:
    value = make(Input("x", TensorType(dtype_name(x.dtype), x.shape)), ())[0]
    runner = Runner(Device(architecture(level)), ImportedWeights({}), threads=1)
    (result,) = runner.execute(Graph((value,), (op(value),)), [x])
    assert not runner.reference_ops
    return result


def codes(dtype: str) -> np.ndarray:
    """Every element that a dtype has."""
    count = 1 << PACKED_BITS.get(dtype, 8)
    return np.arange(count, dtype=np.uint8).view(NUMPY_DTYPES[dtype])


def edges(dtype: str) -> np.ndarray:
    """Numbers on, next to and between those of a dtype, and far from all of them, as float64."""
    rng = np.random.default_rng(seed := secrets.randbits(32))
    print(f"seed {seed}")
    known = np.unique(codes(dtype).astype(np.float32).astype(np.float64))
    known = known[np.isfinite(known)]
    middle = (known[1:] + known[:-1]) / 2
    near = np.concatenate([known, middle])
    steps = [np.nextafter(near.astype(np.float32), np.float32(d)) for d in (-np.inf, np.inf)]
    fine = [np.nextafter(near, d) for d in (-np.inf, np.inf)]
    odd = [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e30, -1e30, 1e-40, 3.4e38, 1e300, 1e-320]
    drawn = rng.normal(size=500) * 2.0 ** rng.integers(-20, 20, 500)
    return np.concatenate([near, *steps, *fine, odd, drawn])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", SMALL)
@pytest.mark.parametrize("to", ["float32", "float64", "float16", "bfloat16", "int32", "uint8"])
def test_every_code(level: str, dtype: str, to: str) -> None:
    x = codes(dtype)
    if to not in FLOATS:
        x = x[np.isfinite(x.astype(np.float32))]
        x = x[np.abs(x.astype(np.float32)) < 2**31]
        x = x[x.astype(np.float32) >= (0 if to[0] == "u" else -np.inf)]
        x = x[x.astype(np.float32) < 256] if to == "uint8" else x
    same(on_cpu(level, Cast(to), x), Cast(to).reference(x))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("source", ["float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("to", SMALL)
def test_every_edge(level: str, source: str, to: str) -> None:
    with np.errstate(all="ignore"):
        x = edges(to).astype(NUMPY_DTYPES[source])
    if to not in FLOATS:
        x = x[np.abs(x.astype(np.float64)) < 2**31]
    if to == "float4_e2m1fn":  # it has no NaN: what becomes of one is not defined
        x = x[~np.isnan(x.astype(np.float64))]
    modes = ("up", "down", "nearest") if to == "float8_e8m0fnu" else ("up",)
    for op in (Cast(to, saturate, mode) for saturate in (True, False) for mode in modes):
        same(on_cpu(level, op, x), op.reference(x), x)


def same(got: np.ndarray, want: np.ndarray, x: np.ndarray | None = None) -> None:
    """The same bits, whatever NaN they are."""
    assert got.dtype == want.dtype
    if dtype_name(want.dtype) in FLOATS:
        nan = np.isnan(want.astype(np.float64))
        np.testing.assert_array_equal(np.isnan(got.astype(np.float64)), nan)
        got, want = got[~nan], want[~nan]
        x = None if x is None else x[~nan]
    a, b = (v.view(f"u{v.dtype.itemsize}") for v in (got, want))
    wrong = a != b
    assert not wrong.any(), (None if x is None else x[wrong][:5], got[wrong][:5], want[wrong][:5])
