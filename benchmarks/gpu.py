"""Networks on a GPU against PyTorch, in one run: scripts/bench-gpu [NAME …] [--batches 1,16].

Exports each network with float16 weights, runs it on whet and on the best of PyTorch (eager in a
CUDA graph, torch.compile in two modes), with fresh inputs at fresh addresses every run, and judges
both by PyTorch in float32. Prints a table; --report writes it as Markdown.
"""

from __future__ import annotations

import argparse
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
from benchmarks.processes import ROOT, environment
from whet.knobs import knobs

NETWORKS = (
    "resnet50",
    "mobilenetv3_large_100",
    "efficientnet_b0",
    "convnext_tiny",
    "vit_base_patch16_224",
    "bert_base",
)
SETS = 8  # of inputs, each at its own address
AUTOTUNED = "max-autotune"
PEERS = ("eager", "reduce-overhead", AUTOTUNED)
CHANNELS_LAST = {"resnet50", "mobilenetv3_large_100", "efficientnet_b0", "convnext_tiny"}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NETWORKS)
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "whet-gpu")
    parser.add_argument("--against", default="eager,reduce-overhead,max-autotune")
    parser.add_argument(
        "--autotune", type=float, default=3600, help="seconds after which no more is autotuned"
    )
    parser.add_argument("--peer", help="only fill PyTorch's cache for this mode")
    parser.add_argument("--kernels", type=int, default=0, help="print that many slowest kernels")
    parser.add_argument("--products", action="store_true", help="matrix products and attention too")
    parser.add_argument("--report", type=Path, help="a Markdown file to write")
    parser.add_argument("--json", type=Path, help="every figure")
    options = parser.parse_args(argv)
    begin = time.perf_counter()
    batches = [int(b) for b in options.batches.split(",")]
    if options.peer:
        against({"network": options.names[0], "batch": batches[0]}, [options.peer])
        return 0
    kinds = [k for k in options.against.split(",") if k.startswith("reduce")]
    prepare(options.names, batches, kinds, options.folder)
    rows: list[dict[str, Any]] = []
    products: list[str] = []
    for name in options.names:
        for batch in batches:
            rows.append({"network": name, "batch": batch})
            attempt(rows[-1], lambda row: measure(row, options))
            print(line(rows[-1]), flush=True)
            keep(rows, products, options)
    if AUTOTUNED in options.against:
        # It takes longest by far: with too little time, the rows go without that need it least.
        for row in sorted(rows, key=ratio_of, reverse=True):
            if time.perf_counter() - begin < options.autotune:
                attempt(row, lambda row: against(row, [AUTOTUNED]))
                print(line(row), flush=True)
                keep(rows, products, options)
    from benchmarks import gpu_products

    for product in gpu_products.rows(7) if options.products else ():
        products.append(product)
        keep(rows, products, options)
    print("\n" + "\n".join([*map(line, rows), *products]))
    return int(any("failed" in row for row in rows))


def keep(rows: list[dict[str, Any]], products: list[str], options: argparse.Namespace) -> None:
    """Writes what was measured so far: it stays, whatever comes."""
    from benchmarks import gpu_report

    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    if options.report:
        options.report.write_text(gpu_report.report(rows, products))


def ratio_of(row: dict[str, Any]) -> float:
    """whet's time by PyTorch's best."""
    best = best_of(row)
    return float(row["whet"] / row[best]) if best and "failed" not in row else 0.0


def attempt(row: dict[str, Any], run: Callable[[dict[str, Any]], None]) -> None:
    """Fills in a row; what fails is told in it."""
    try:
        run(row)
    except Exception as error:
        traceback.print_exc(limit=-5)
        row["failed"] = f"{error!r:.200}"


def prepare(
    names: Sequence[str], batches: Sequence[int], kinds: Sequence[str], folder: Path
) -> None:
    """Writes the networks that are not there yet, and fills PyTorch's cache of compiled code, all
    at the same time."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [n for n in names if not path_of(n, folder).exists()]
    export = [sys.executable, "-m", "benchmarks.networks", "--dynamic", "--half", "--folder"]
    commands = [[*export, str(folder), n] for n in missing]
    peer = [sys.executable, "-m", "benchmarks.gpu"]
    commands += [
        [*peer, n, "--batches", str(b), "--peer", k] for n in names for b in batches for k in kinds
    ]
    running = [subprocess.Popen(c, cwd=Path(__file__).parents[1]) for c in commands]
    for process in running:
        process.wait()


def path_of(name: str, folder: Path) -> Path:
    """Where a network's file is."""
    return folder / f"{name}_half_dyn.onnx"


def measure(row: dict[str, Any], options: argparse.Namespace) -> None:
    """whet's figures of one network at one batch size, and those of PyTorch that are quick."""
    model, sets, judge = task(row)
    ours(row, sets, judge, options)
    del model, sets, judge
    against(row, [k for k in options.against.split(",") if k and k != AUTOTUNED])


def task(row: dict[str, Any]) -> tuple[Any, list[dict[str, Any]], Any]:
    """A row's network, sets of inputs, and what float32 gives for the first of them."""
    from benchmarks.networks import create, fill_zero_matrices

    model, examples = create(row["network"], half=True)
    fill_zero_matrices(model)
    model = model.eval().cuda()
    sets = [fresh(examples, row["batch"], seed) for seed in range(SETS)]
    return model, sets, wide(model, sets[0])


def against(row: dict[str, Any], kinds: Sequence[str]) -> None:
    """PyTorch's figures in some of its modes."""
    import torch

    model, sets, judge = task(row)
    for kind in kinds:
        try:
            row[kind] = theirs(kind, row["network"], model, sets, judge, row)
        except Exception as error:
            row[f"{kind} failed"] = f"{error!r:.200}"
    del model, sets, judge
    torch.cuda.empty_cache()


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
    row: dict[str, Any], sets: list[dict[str, Any]], judge: Any, options: argparse.Namespace
) -> None:
    """whet's time, error, memory, and what compiling and starting took."""
    import torch

    import whet

    engine = whet.build(path_of(row["network"], options.folder))
    with tempfile.TemporaryDirectory(prefix="whet-bench-") as folder:
        cache = Path(folder) / "cache"
        start, used = time.perf_counter(), processor_seconds()
        with knobs.override(compile_workers=4):  # as the bar says; more where there are processors
            session = engine.session(device="cuda", cache=cache, specialize="eager")
            got = torch.from_dlpack(session.run(sets[0])["output"])
        row["cold s"] = time.perf_counter() - start
        row["cold processor s"] = processor_seconds() - used
        row["arena"], row["live"] = arena(session)
        row["error"] = error_of(got, judge)
        again = torch.from_dlpack(session.run(sets[0])["output"])
        row["same bits"] = bool(torch.equal(got, again))
        row["references"] = len(session.reference_ops)
        row["kernels"] = len(session.plans[-1].steps)
        device: Any = session._runner.device
        row["libraries"] = sum(device.library_of(s.kernel) != "" for s in session.plans[-1].steps)
        stream = torch.cuda.current_stream()
        run = partial(turn, session, sets, stream)
        row["whet"] = median(run)
        row["host us"], row["host us idle"] = (1e6 * t for t in host_times(run))
        row["device only"] = 1e3 * graph_time(session)
        if options.kernels:
            slowest(session, sets[0], options.kernels)
        file = Path(folder) / "engine.whet"
        engine.save(file)
        del session, run
        row |= warm_start(file, cache, row["batch"])


def turn(session: Any, sets: list[dict[str, Any]], stream: Any, number: int) -> Any:
    """One run, with inputs other than those of the run before."""
    return session.run(sets[number % SETS], stream=stream)


def arena(session: Any) -> tuple[int, int]:
    """The arena's bytes, and the largest sum of tensors in it that are alive at once."""
    from whet.plan.plan import nbytes

    plan = session.plans[-1]
    last = {v: n for n, step in enumerate(plan.steps) for v in (*step.reads, *step.writes)}
    alive, most = set(), 0
    for number, step in enumerate(plan.steps):
        alive |= {v for v in step.writes if v in plan.offsets}
        most = max(most, sum(nbytes(v.tensor) for v in alive))
        alive -= {v for v in alive if last[v] <= number}
    return plan.arena, most


def warm_start(engine: Path, cache: Path, batch: int) -> dict[str, Any]:
    """Seconds to the first result of a new process, how many kernels it compiled, and its memory on
    the device."""
    command = [sys.executable, "-m", "benchmarks.gpu_start", str(engine), str(cache), str(batch)]
    subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True)  # leaves bytecode
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    )
    seconds, *numbers = done.stdout.split()
    names = ("warm compiled", "memory", "foreseen", "least")
    return {"warm s": float(seconds), **dict(zip(names, map(int, numbers)))}


def host_times(run: Callable[[int], Any], turns: int = 40, each: int = 10) -> tuple[float, float]:
    """The medians of the seconds until a run has been asked for: one behind the other, and the
    first after waiting for the device, when a processor has to wake up, too."""
    import torch

    behind: list[float] = []
    first: list[float] = []
    for turn in range(turns):
        torch.cuda.synchronize()
        for number in range(each):
            start = time.perf_counter()
            run(turn * each + number)
            (behind if number else first).append(time.perf_counter() - start)
    torch.cuda.synchronize()
    return statistics.median(behind), statistics.median(first)


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
    torch.cuda.synchronize()
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


def best_of(row: dict[str, Any]) -> str | None:
    """PyTorch's fastest mode."""
    return min((k for k in PEERS if k in row), key=row.__getitem__, default=None)


def line(row: dict[str, Any]) -> str:
    """A row as text."""
    if "failed" in row:
        return f"{row['network']:24} {row['batch']:3} FAILED {row['failed']}"
    best = best_of(row)
    peers = " ".join(f"{k} {row[k]:.3f}" for k in PEERS if k in row)
    ratio = f"{row['whet'] / row[best]:.2f} of {best}" if best else ""
    error = f" against {row[f'{best} error']:.1e}" if best else ""
    return (
        f"{row['network']:24} {row['batch']:3} whet {row['whet']:.3f} ms (device "
        f"{row['device only']:.3f}) {ratio}; {peers}; error {row['error']:.1e}{error}; "
        f"{row['kernels']} kernels, {row['libraries']} by libraries, "
        f"{row['references']} on the host; cold {row['cold s']:.1f} s "
        f"({row['cold processor s']:.0f}), warm {row['warm s']:.2f} s ({row['warm compiled']}), "
        f"host {row['host us']:.0f} us ({row['host us idle']:.0f} after waiting), "
        f"memory {row['memory'] / 1e6:.1f} MB, "
        f"{row['memory'] / row['foreseen']:.2f} of what is foreseen and "
        f"{row['memory'] / row['least']:.2f} of weights and arena"
        f"{'' if row['same bits'] else ', OTHER BITS'}"
    )


if __name__ == "__main__":
    sys.exit(main())
