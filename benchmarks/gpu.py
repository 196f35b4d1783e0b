"""Networks on a GPU against PyTorch, in one run: scripts/bench-gpu [NAME …] [--batches 1,16].

Exports each network with float16 weights, runs it on whet and on the best of PyTorch (eager in a
CUDA graph, torch.compile in two modes), with fresh inputs at fresh addresses every run, and judges
both by PyTorch in float32. Prints a table; --report writes it as Markdown.
"""

from __future__ import annotations

import argparse
import importlib.metadata as metadata
import json
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu_time import graph_time

NETWORKS = (
    "resnet50",
    "mobilenetv3_large_100",
    "efficientnet_b0",
    "convnext_tiny",
    "vit_base_patch16_224",
    "bert_base",
)
SETS = 8  # of inputs, each at its own address
CHANNELS_LAST = {"resnet50", "mobilenetv3_large_100", "efficientnet_b0", "convnext_tiny"}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NETWORKS)
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "whet-gpu")
    parser.add_argument("--against", default="eager,reduce-overhead,max-autotune")
    parser.add_argument("--tune", type=float, default=0, help="seconds for measuring kernels")
    parser.add_argument("--kernels", type=int, default=0, help="print that many slowest kernels")
    parser.add_argument("--report", type=Path, help="a Markdown file to write")
    parser.add_argument("--json", type=Path, help="every figure")
    options = parser.parse_args(argv)
    export_all(options.names, options.folder)
    rows: list[dict[str, Any]] = []
    for name in options.names:
        for batch in map(int, options.batches.split(",")):
            try:
                rows.append(measure(name, batch, options))
            except Exception as error:
                traceback.print_exc(limit=-5)
                rows.append({"network": name, "batch": batch, "failed": f"{error!r:.200}"})
            print(line(rows[-1]), flush=True)
    print("\n" + "\n".join(map(line, rows)))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    if options.report:
        options.report.write_text(report(rows))
    return int(any("failed" in row for row in rows))


def export_all(names: Sequence[str], folder: Path) -> None:
    """Writes the networks that are not there yet, all at the same time."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [n for n in names if not path_of(n, folder).exists()]
    command = [sys.executable, "-m", "benchmarks.networks", "--dynamic", "--half", "--folder"]
    running = [
        subprocess.Popen([*command, str(folder), n], cwd=Path(__file__).parents[1]) for n in missing
    ]
    for process in running:
        process.wait()


def path_of(name: str, folder: Path) -> Path:
    """Where a network's file is."""
    return folder / f"{name}_half_dyn.onnx"


def measure(name: str, batch: int, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one network at one batch size."""
    import torch

    from benchmarks.networks import create, fill_zero_matrices

    row: dict[str, Any] = {"network": name, "batch": batch}
    model, examples = create(name, half=True)
    fill_zero_matrices(model)
    model = model.eval().cuda()
    sets = [fresh(examples, batch, seed) for seed in range(SETS)]
    judge = wide(model, sets[0])
    ours(name, batch, sets, judge, options, row)
    peers: dict[str, Callable[[], float]] = {
        kind: partial(theirs, kind, name, model, sets, judge, row)
        for kind in options.against.split(",")
        if kind
    }
    for kind, run in peers.items():
        try:
            row[kind] = run()
        except Exception as error:
            row[f"{kind} failed"] = f"{error!r:.200}"
    del model
    torch.cuda.empty_cache()
    return row


def fresh(examples: dict[str, Any], batch: int, seed: int) -> dict[str, Any]:
    """Inputs of a batch on the device."""
    import torch

    torch.manual_seed(seed)
    made = {}
    for key, x in examples.items():
        shape = (batch, *x.shape[1:])
        if x.is_floating_point():
            made[key] = torch.randn(shape, dtype=x.dtype, device="cuda")
        else:
            ids = torch.randint(0, 30000, shape, device="cuda")
            made[key] = torch.ones_like(ids) if "mask" in key else ids
    return made


def wide(model: Any, inputs: dict[str, Any]) -> Any:
    """What the network gives in float32."""
    import copy

    import torch

    # TF32 would make the judge no better than those that it judges.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    with torch.no_grad():
        x = [v.float() if v.is_floating_point() else v for v in inputs.values()]
        return copy.deepcopy(model).float()(*x)


def error_of(got: Any, judge: Any) -> float:
    """The norm of the difference by the norm."""
    return float((got.float() - judge).norm() / judge.norm())


def ours(
    name: str,
    batch: int,
    sets: list[dict[str, Any]],
    judge: Any,
    options: argparse.Namespace,
    row: dict[str, Any],
) -> None:
    """whet's time, error, and what compiling took."""
    import torch

    import whet

    start, used = time.perf_counter(), processor_seconds()
    session = whet.build(path_of(name, options.folder)).session(
        device="cuda", cache=False, tune=options.tune
    )
    got = torch.from_dlpack(session.run(sets[0])["output"])
    row["cold s"] = time.perf_counter() - start
    row["cold processor s"] = processor_seconds() - used
    row["error"] = error_of(got, judge)
    row["references"] = len(session.reference_ops)
    row["kernels"] = sum(len(p.steps) for p in session.plans)
    row["whet"] = median(lambda i: session.run(sets[i % SETS]))
    row["device only"] = 1e3 * graph_time(session)
    if options.kernels:
        slowest(session, sets[0], options.kernels)


def processor_seconds() -> float:
    """Of this process and of those that it waited for."""
    import resource

    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, kinds))


def median(run: Callable[[int], Any], least: float = 0.25) -> float:
    """The median of milliseconds for a run, with nothing else on the device."""
    import torch

    for i in range(5):
        run(i)
    torch.cuda.synchronize()
    times: list[float] = []
    begin = time.perf_counter()
    while time.perf_counter() - begin < least or len(times) < 20:
        start = time.perf_counter()
        run(len(times))
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def slowest(session: Any, inputs: dict[str, Any], count: int) -> None:
    """Prints the kernels that take longest, each timed by itself."""
    session.trace(inputs)
    traces = [session.trace(inputs) for _ in range(5)]
    steps = [step for step, _ in traces[0].steps]
    times = [statistics.median(t.steps[n][1] for t in traces) for n in range(len(steps))]
    print(f"  {len(steps)} kernels one by one: {1e3 * sum(times):.3f} ms")
    for n in sorted(range(len(steps)), key=lambda n: -times[n])[:count]:
        kernel = " ".join(str(steps[n].kernel).split())[:150]
        print(f"  {1e6 * times[n]:7.1f} us {'+'.join(steps[n].nodes)[:40]:40} {kernel}")


def theirs(
    kind: str, name: str, model: Any, sets: list[dict[str, Any]], judge: Any, row: dict[str, Any]
) -> float:
    """PyTorch's time in one of its modes."""
    import torch

    layout = torch.channels_last if name in CHANNELS_LAST else torch.contiguous_format
    model = model.to(memory_format=layout)
    sets = [
        {k: v.contiguous(memory_format=layout) if v.ndim == 4 else v for k, v in s.items()}
        for s in sets
    ]
    with torch.no_grad():
        run = eager_graph(model, sets[0]) if kind == "eager" else compiled(kind, model)
        start = time.perf_counter()
        got = run(sets[0]).clone()
        row[f"{kind} compile s"] = time.perf_counter() - start
        row[f"{kind} error"] = error_of(got, judge)
        return median(lambda i: run(sets[i % SETS]))


def eager_graph(model: Any, example: dict[str, Any]) -> Callable[[dict[str, Any]], Any]:
    """Eager mode in a CUDA graph, into whose inputs each run's are copied."""
    import torch

    static = {k: v.clone() for k, v in example.items()}
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            model(*static.values())
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = model(*static.values())

    def run(inputs: dict[str, Any]) -> Any:
        for key, x in inputs.items():
            static[key].copy_(x)
        graph.replay()
        return out

    return run


def compiled(mode: str, model: Any) -> Callable[[dict[str, Any]], Any]:
    """torch.compile."""
    import torch

    torch._dynamo.reset()
    made = torch.compile(model, mode=mode)

    def run(inputs: dict[str, Any]) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return made(*inputs.values())

    return run


def line(row: dict[str, Any]) -> str:
    """A row as text."""
    if "failed" in row:
        return f"{row['network']:24} {row['batch']:3} FAILED {row['failed']}"
    peers = [k for k in ("eager", "reduce-overhead", "max-autotune") if k in row]
    best = min((row[k] for k in peers), default=float("nan"))
    error = min((row[f"{k} error"] for k in peers), default=float("nan"))
    return (
        f"{row['network']:24} {row['batch']:3} whet {row['whet']:.3f} ms "
        f"(device {row['device only']:.3f}),"
        f" best of PyTorch {best:.3f} = {row['whet'] / best:.2f};"
        f" {' '.join(f'{k} {row[k]:.3f}' for k in peers)};"
        f" error {row['error']:.1e} against {error:.1e}; {row['kernels']} kernels,"
        f" {row['references']} on the host; cold {row['cold s']:.1f} s,"
        f" {row['cold processor s']:.1f} processor s"
    )


def report(rows: list[dict[str, Any]]) -> str:
    """The table as Markdown, with what it was measured on."""
    import torch

    from whet.targets.cuda import driver

    found = driver.find(0)
    versions = ", ".join(f"{n} {metadata.version(n)}" for n in ("torch", "triton", "timm"))
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    head = [
        "# Networks on a GPU\n",
        f"{time.strftime('%Y-%m-%d')}, {found.name}, driver {found.driver}, CUDA "
        f"{torch.version.cuda}, {versions}, commit {commit.strip()[:12] or 'unknown'}; written by "
        "scripts/bench-gpu.\n",
        "| network | batch | whet, ms | best of PyTorch, ms | ratio | error | PyTorch's |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        peers = [k for k in ("eager", "reduce-overhead", "max-autotune") if k in row]
        if "failed" in row or not peers:
            continue
        best = min(peers, key=row.__getitem__)
        head.append(
            f"| {row['network']} | {row['batch']} | {row['whet']:.3f} | {row[best]:.3f} ({best}) | "
            f"{row['whet'] / row[best]:.2f} | {row['error']:.1e} | {row[f'{best} error']:.1e} |"
        )
    return "\n".join(head) + "\n"


if __name__ == "__main__":
    sys.exit(main())
