"""Random graphs of mixed operators, whole, against ONNX Runtime; and what they have found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import whet
from tests.frontends.fuzz_graphs import problems, through_file
from tests.frontends.random_graphs import drawn, outputs_of
from tests.frontends.written import assert_same, peer, written

pytest.importorskip("onnxruntime", reason="ONNX Runtime, the judge, is not installed")

SEED = 2608
"""The same graphs at each run; `python -m tests.frontends.fuzz_graphs` draws others."""
COUNT = 16
NODES = 10


@pytest.mark.parametrize("number", range(COUNT))
def test_like_onnxruntime(number: int) -> None:
    seed = SEED + number
    graph = drawn(seed, NODES)
    assert len(graph.nodes) >= NODES
    wrong = problems(graph, outputs_of(graph, seed), seed)
    assert not wrong, (
        f"python -m tests.frontends.fuzz_graphs --seed {seed} --nodes {NODES} --count 1"
    )


FOUND = {
    "product of nothing by nothing": (
        """agraph (float[4, 6] x) => (y)
        <int64[2] parts = {4, 0}, int64[1] last = {-1}> {
          all, none = Split <axis = 0> (x, parts)
          turned = Transpose <perm = [1, 0]> (none)
          y = MatMul (none, turned)
        }""",
        [(4, 6)],
    ),
    "rows that only a run knows the distance of": (
        """agraph (float[n, m, 4] x) => (y)
        <int64[1] first = {-1}, int64[1] end = {-2}, int64[1] axis = {1}, int64[1] back = {-1},
         float[4, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}> {
          last = Slice (x, first, end, axis, back)
          y = MatMul (last, w)
        }""",
        [(2, 5, 4), (3, 1, 4)],
    ),
    "a place of nothing in nothing": (
        """agraph (float[m] x) => (y)
        <int64[1] first = {3}, int64[1] end = {9223372036854775807}, int64[1] axis = {0}> {
          some = Slice (x, first, end, axis)
          less = Less (some, some)
          y = Compress <axis = 0> (some, less)
        }""",
        [(5,), (1,), (5,)],
    ),
    "rows of nothing": (
        """agraph (float[n, m, 4] x) => (y)
        <int64[1] first = {6}, int64[1] end = {9223372036854775807}, int64[1] axis = {1}> {
          z = Transpose <perm = [0, 2, 1]> (x)
          s = MatMul (x, z)
          part = Slice (s, first, end, axis)
          y = Flatten <axis = 2> (part)
        }""",
        [(2, 5, 4), (3, 1, 4), (2, 8, 4)],
    ),
    "a branch inside of a plan that is kept": (
        """agraph (float[n, m] x) => (y) {
          most = ReduceMax <keepdims = 0> (x)
          is = Cast <to = 9> (most)
          z = Transpose <perm = [0, 1]> (x)
          y = If (is) <then_branch = a () => (inner) { inner = Neg (z) },
                       else_branch = b () => (inner) { inner = Mul (z, x) }>
        }""",
        [(2, 5), (3, 1)],
    ),
    "a plan before a late region that reads weights": (
        """agraph (float[n, m] x) => (y, z)
        <float[4] w = {1, 2, 3, 4}, float[1] one = {1}> {
          most = ReduceMax <keepdims = 0> (x)
          is = Cast <to = 9> (most)
          r = If (is) <then_branch = a () => (inner) { inner = Neg (x) },
                       else_branch = b () => (inner) { inner = Add (w, w) }>
          y = Mul (r, one)
          z = Exp (x)
        }""",
        [(2, 5), (3, 1)],
    ),
    "backwards from before the first": (
        """agraph (float[m] x) => (y)
        <int64[1] first = {-2}, int64[1] end = {-2147483648}, int64[1] axis = {0},
         int64[1] back = {-1}> { y = Slice (x, first, end, axis, back) }""",
        [(5,), (1,), (2,)],
    ),
}
"""Name -> model as text, and the shapes of its input x in turn."""


@pytest.mark.parametrize("specialize", ["none", "eager"])
@pytest.mark.parametrize("name", FOUND)
def test_found(name: str, specialize: str, tmp_path: Any) -> None:
    text, shapes = FOUND[name]
    model = written(text)
    built = whet.build(model)
    for engine in (built, through_file(built)):
        session = engine.session("cpu", specialize=specialize, cache=tmp_path)
        for shape in shapes:
            given = {"x": np.random.default_rng().standard_normal(shape).astype(np.float32)}
            got = list(session.run(given).values())
            assert_same(got, peer(model, given))
