"""Runs the last block of kernels whose tensors have more than 2^31 elements, through Triton's
interpreter: python -m tests.targets.cuda.run_large [words]. Of their memory only what the block
touches becomes real."""

from __future__ import annotations

import math
import mmap
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np

from tests.targets.cuda.interpreter import Interpreted, launch
from whet.ir.graph import Graph, Input, Value, make
from whet.ir.types import TensorType
from whet.ops.attention import Attention
from whet.ops.contract import Convolution, MatMul
from whet.ops.reduce import Cumulative, Reduce
from whet.plan.legalize import legal
from whet.plan.plan import make_plan
from whet.targets.cuda.codegen import to_triton

NO_RESERVE = 0x4000  # MAP_NORESERVE, which mmap has from Python 3.13 on


def main(words: list[str]) -> int:
    """Prints each one whose last block touches what is not there; returns how many."""
    device, failed, passed = Interpreted(), 0, 0
    for name, graph in large().items():
        if not all(word in name for word in words):
            continue
        try:
            run_last(graph, device)
            passed += 1
            print(f"ok   {name}", flush=True)
        except Exception as problem:
            failed += 1
            print(f"BAD  {name}: {type(problem).__name__}: {str(problem)[:300]}", flush=True)
    print(f"{passed} passed, {failed} failed")
    return failed


def graph(op: Callable[..., Any], dtype: str, *shapes: tuple[int, ...]) -> Graph:
    """One operator of inputs of these shapes."""
    inputs: list[Value] = [
        make(Input(f"x{n}", TensorType(dtype, shape)), ())[0] for n, shape in enumerate(shapes)
    ]
    return Graph(tuple(inputs), (op(*inputs),), ("y",))


def large() -> dict[str, Graph]:
    """Graphs of few kernels, by name."""
    lines, image = (80, 30_000_000), (1, 3, 1_100_000, 1024)
    plain = (1, 1), (1, 1), (0, 1), (0, 1)
    return {
        "products": graph(MatMul("int32"), "int8", (1088, 1024, 2048), (1088, 2048, 16)),
        "sums": graph(Reduce("sum", (0,)), "int8", lines),
        "scan": graph(Cumulative("sum", 0), "int8", lines),
        "convolution": graph(Convolution(*plain), "float16", image, (32, 3, 3, 1024)),
        "depthwise": graph(Convolution(*plain, 1024), "float16", image, (1024, 3, 3, 1)),
        "attention": graph(lambda q: Attention(0.2)(q, q, q), "float16", (70_000, 8, 64, 64)),
    }


def untouched(count: int, dtype: type) -> np.ndarray:
    """Zeros that are memory in name only, and nothing for as far before them as offsets of 32 bits
    go."""
    before, size = np.dtype(dtype).itemsize << 31, np.dtype(dtype).itemsize * count
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
    return np.frombuffer(mmap.mmap(-1, before + size, flags), dtype, count, before)


def run_last(graph: Graph, device: Interpreted) -> None:
    """Lets the last block of each launch touch its memory."""
    plan = make_plan(legal(graph, device), device.capabilities)
    for step in plan.steps:
        assert step.kernel is not None
        source = to_triton(step.kernel, device.architecture)
        values = (*step.reads, *step.writes)
        arrays: dict[Any, np.ndarray]
        arrays = {n: untouched(math.prod(v.shape), v.tensor.numpy) for n, v in enumerate(values)}
        arrays["error"] = np.zeros(1, np.int32)
        for call in source.launches:
            x, y, z = call.grid
            assert y == z == 1, "no more than 65,535 blocks may lie along y or z"
            text = source.text.replace("tl.program_id(0)", f"(tl.program_id(0) + {x - 1})")
            launch(replace(source, text=text), replace(call, grid=(1, 1, 1)), arrays, int)


if __name__ == "__main__":
    sys.exit(bool(main(sys.argv[1:])))
