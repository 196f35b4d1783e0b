"""Matrix products and attention in float16 on a GPU, against PyTorch's (cuBLAS, fast attention).

python -m benchmarks.gpu_products [--tune SECONDS]: a line for each shape with both times; each is
the mean over several products of different operands in one CUDA graph, the best of some launches.
Both take turns, with a pause before each: a GPU that was busy just before runs slower for a while.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.gpu_time import LAUNCHES, graph_time
from whet.engine.weights import ImportedWeights
from whet.ir.graph import Graph, Input, Value, make
from whet.ir.types import TensorType
from whet.ops.attention import Attention
from whet.ops.contract import MatMul
from whet.runtime.engine import Engine

PRODUCTS = (
    (4096, 4096, 4096),
    (8192, 8192, 8192),
    (2048, 768, 768),
    (2048, 2304, 768),
    (2048, 3072, 768),
    (2048, 768, 3072),
    (3152, 768, 768),
    (3152, 2304, 768),
    (3152, 3072, 768),
    (3152, 768, 3072),
    (128, 768, 768),
    (128, 3072, 768),
    (128, 768, 3072),
)
"""Rows, columns and depth: large ones, and those of the transformers at batch 16 and 1."""

ATTENTIONS = ((1, 16, 4096, 128, False), (1, 16, 4096, 128, True), (16, 12, 197, 64, False))
"""Batch, heads, tokens, width, and whether a token sees only those before it."""

ROUNDS, PAUSE = 4, 0.05
"""Turns of each, and the seconds before one."""

Build = Callable[..., Value]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--tune", type=float, default=7, help="seconds of compiling in which others are tried"
    )
    options = parser.parse_args(argv)
    for row in rows(options.tune):
        print(row, flush=True)
    return 0


def rows(tune: float) -> Any:
    """A line for each problem."""
    import torch

    for m, n, k in PRODUCTS:
        count = max(2, min(16, 2**31 // (m * n * k)))
        shapes = ((m, k), (k, n))
        yield compare(f"{m}x{n}x{k}", MatMul(), torch.matmul, shapes, count, 2.0 * m * n * k, tune)
    for batch, heads, tokens, width, causal in ATTENTIONS:
        op = Attention(width**-0.5, right=0 if causal else None)

        def attend(q: Any, k: Any, v: Any, causal: bool = causal) -> Any:
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)

        shape = (batch, heads, tokens, width)
        work = 4.0 * batch * heads * tokens * tokens * width / (2 if causal else 1)
        name = f"attention {batch}x{heads}x{tokens}x{width}{' causal' * causal}"
        yield compare(name, op, attend, (shape,) * 3, 4, work, tune)


def compare(
    name: str, op: Build, theirs: Any, shapes: Any, count: int, work: float, tune: float
) -> str:
    """Both times of a problem as text."""
    import torch

    sets = [[torch.randn(s, device="cuda").half() for s in shapes] for _ in range(count)]
    wanted = theirs(*(x.float() for x in sets[0]))
    first, got = ours(op, sets, tune)
    second, peer = pytorch(theirs, sets)
    mine = other = float("inf")
    for _ in range(ROUNDS):
        time.sleep(PAUSE)
        mine = min(mine, first() / count)
        time.sleep(PAUSE)
        other = min(other, second() / count)
    errors = [float((y.float() - wanted).norm() / wanted.norm()) for y in (got, peer)]
    return (
        f"{name:36} whet {1e6 * mine:8.1f} us {work / mine * 1e-12:6.1f} TFLOP/s, PyTorch "
        f"{1e6 * other:8.1f} us {work / other * 1e-12:6.1f}: {other / mine:.2f} of its speed; "
        f"error {errors[0]:.1e} against {errors[1]:.1e}"
    )


def ours(op: Build, sets: list[list[Any]], tune: float) -> tuple[Callable[[], float], Any]:
    """What gives the seconds of all problems here, and the first one's result."""
    import torch

    inputs = [
        [make(Input(f"x{n}_{i}", TensorType("float16", tuple(x.shape))), ())[0] for i, x in row]
        for n, row in enumerate(list(enumerate(s)) for s in sets)
    ]
    outputs = tuple(op(*row) for row in inputs)
    names = tuple(f"y{n}" for n in range(len(outputs)))
    graph = Graph(tuple(v for row in inputs for v in row), outputs, names)
    session = Engine(graph, ImportedWeights({})).session(device="cuda", cache=False, tune=tune)
    given = {f"x{n}_{i}": x for n, s in enumerate(sets) for i, x in enumerate(s)}
    results = session.run(given)
    device: Any = session._runner.device
    # Operands that lie elsewhere in each run are none that a library is asked for.
    assert not any(device.library_of(step.kernel) for step in session.plans[-1].steps)
    got = torch.from_dlpack(results["y0"]).clone()
    return lambda: graph_time(session), got


def pytorch(run: Any, sets: list[list[Any]]) -> tuple[Callable[[], float], Any]:
    """What gives the seconds of all problems in PyTorch, and the first one's result."""
    import torch

    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        for s in sets:
            run(*s)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = [run(*s) for s in sets]

    def once() -> float:
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        first.record()
        graph.replay()
        last.record()
        torch.cuda.synchronize()
        return 1e-3 * float(first.elapsed_time(last))

    graph.replay()
    torch.cuda.synchronize()
    got = results[0].clone()
    return lambda: min(once() for _ in range(LAUNCHES)), got


if __name__ == "__main__":
    sys.exit(main())
