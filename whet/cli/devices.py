"""`whet devices`: what whet found on this machine, and what to do about what is missing."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from whet.cli.status import MACHINE, OK
from whet.cli.terminal import amount, output, say, size, working
from whet.errors import Error

ABOUT = """\
The doctor: the processor's features and which of them are used, cores, memory, the cache,
versions, whether a kernel can be compiled and run, and how fast the machine is just now. Each
problem comes with what to do."""

EXAMPLES = """\
  whet devices
  whet devices --json           for scripts, and for bug reports"""

NEEDED = ("numpy", "ml_dtypes", "llvmlite", "onnx", "rich")
OPTIONAL = {
    "pillow": "pictures as inputs",
    "onnxruntime": "whet check and whet bench against it",
    "openvino": "whet bench against it",
    "torch": "whet bench against it",
    "triton": "compiling for NVIDIA GPUs: `pip install whet[cuda]`",
    "cuda-bindings": "running on NVIDIA GPUs: `pip install whet[cuda]`",
}


@dataclass(frozen=True)
class Line:
    """One finding: `problem` says what to do, where something should be done."""

    topic: str
    name: str
    value: str
    problem: str | None = None
    is_fatal: bool = False


def add(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser(
        "devices",
        help="what whet found on this machine, and what is missing",
        about=ABOUT,
        examples=EXAMPLES,
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Looks at everything and reports."""
    lines = [*processor(), *cores(), *memory(), *gpus(), *packages(), *cache()]
    with working("trying the compiler"):
        lines += [trial(), *limits()]
    if options.json:
        say(json.dumps([vars(line) for line in lines], indent=1))
    else:
        _print(lines)
    return MACHINE if any(line.is_fatal for line in lines) else OK


def describe() -> dict[str, str]:
    """The processor and the versions that a figure depends on."""
    lines = [*processor(), *cores(), *packages()]
    wanted = {"processor", "architecture", "processors", "python", "whet", *NEEDED, *OPTIONAL}
    return {line.name: line.value for line in lines if line.name in wanted}


def _print(lines: list[Line]) -> None:
    from rich.text import Text

    console, topic = output(), ""
    for line in lines:
        if line.topic != topic:
            topic = line.topic
            console.print(Text(topic, style="bold"))
        console.print(f"  {line.name:<16} {line.value}", soft_wrap=True)
        if line.problem:
            style = "bold red" if line.is_fatal else "yellow"
            console.print(Text(f"  {'':<16} -> {line.problem}", style=style), soft_wrap=True)
    problems = sum(line.problem is not None for line in lines)
    verdict = "all is well" if not problems else f"to look at: {problems}, marked ->"
    console.print(Text(verdict, style="bold green" if not problems else "bold"))


def processor() -> list[Line]:
    """The instruction sets that are there, and which of them code is generated for."""
    from whet.targets.cpu import host

    topic = "cpu"
    name = Line(topic, "processor", _model_name())
    found = host.features()
    try:
        architecture = host.architecture()
    except Error as error:
        return [name, Line(topic, "architecture", "none", str(error), True)]
    unused = sorted(found - architecture.requirements)
    sizes = host.cache_sizes()
    return [
        name,
        Line(topic, "architecture", str(architecture)),
        Line(topic, "vectors", f"{8 * architecture.vector_bytes} bits"),
        Line(topic, "features used", " ".join(sorted(architecture.requirements))),
        Line(topic, "not used", " ".join(unused) or "none"),
        Line(topic, "caches", f"{size(sizes.l1)}, {size(sizes.l2)}, {size(sizes.l3)}"),
    ]


def _model_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1] for line in text.splitlines() if line.startswith("model name")]
    return names[0].strip() if names else platform.machine()


def cores() -> list[Line]:
    """How many processors there are, and how many of them this process may use."""
    from whet.targets.cpu import host

    everywhere, mine, quota = os.cpu_count() or 1, host.cpus(), host.cpu_quota()
    granted = f", quota {quota}" if quota else ""
    lacks = None
    if host.cores() < everywhere:
        lacks = "the affinity mask or the container's quota leaves fewer than the machine has"
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    busy = None
    if load > 0.5 * host.cores():
        busy = "others are at work here: figures measured now are not to be trusted"
    return [
        Line("cpu", "processors", f"{len(mine)} of {everywhere} for this process{granted}", lacks),
        Line("cpu", "threads", f"{host.default_threads()} in a session unless told"),
        Line("cpu", "load", f"{load:.1f} over the last minute", busy),
    ]


def gpus() -> list[Line]:
    """The GPUs that can be used, or why there are none."""
    from whet.targets.cuda import driver
    from whet.targets.cuda.compile import has_triton

    try:
        driver.api()
    except Error as error:
        # Without a GPU nothing is wrong: it is said, and is no problem.
        return [Line("gpu", "none", str(error))]
    found = [_gpu(number) for number in range(driver.count())]
    if found and not has_triton():
        advice = "`pip install whet[cuda]`: without it only kernels from elsewhere run"
        found.append(Line("gpu", "compiler", "Triton is not installed", advice))
    return found or [Line("gpu", "none", "the NVIDIA driver is there and sees no GPU")]


def _gpu(number: int) -> Line:
    from whet.targets.cuda import driver

    try:
        gpu = driver.find(number)
    except Error as error:
        return Line("gpu", f"cuda:{number}", f"not used: {error}")
    code = gpu.architecture
    value = (
        f"{gpu.name}, compute capability {code.major}.{code.minor}, {size(gpu.memory)}, "
        f"driver for CUDA {gpu.driver}; code for {code}"
    )
    return Line("gpu", f"cuda:{number}", value)


def memory() -> list[Line]:
    """What is free, and whether huge pages can be had."""
    try:
        rows = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free, whole = (1024 * int(rows[k].split()[0]) for k in ("MemAvailable", "MemTotal"))
    except (OSError, KeyError, ValueError):
        return []
    lines = [Line("memory", "available", f"{size(free)} of {size(whole)}")]
    try:
        state = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return lines
    chosen = state[state.find("[") + 1 : state.find("]")]
    advice = (
        "`echo madvise` into /sys/kernel/mm/transparent_hugepage/enabled makes large models faster"
    )
    return [*lines, Line("memory", "huge pages", chosen, advice if chosen == "never" else None)]


def packages() -> list[Line]:
    """Versions of what is needed and of what may be there."""
    lines = [Line("versions", "python", f"{platform.python_version()} on {sys.platform}")]
    for name in ("whet", *NEEDED):
        found = _installed(name)
        advice = f"`pip install {name}`" if found is None and name != "whet" else None
        lines.append(Line("versions", name, found or "not installed", advice, advice is not None))
    for name, purpose in OPTIONAL.items():
        lines.append(Line("versions", name, _installed(name) or f"not installed (for {purpose})"))
    return lines


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cache() -> list[Line]:
    """Where compiled kernels are kept, and whether that works."""
    from whet.runtime.cache import Cache

    found = Cache.default().info()
    full = f"{found.entries} kernels, {size(found.bytes)} of at most {size(found.limit)}"
    return [
        Line("cache", "folder", str(found.folder or "none"), found.problem),
        Line("cache", "content", full),
    ]


def limits() -> list[Line]:
    """What all threads reach together, measured now: what `whet show --times` compares with."""
    from whet.runtime.cache import Cache
    from whet.targets.cpu import host
    from whet.targets.cpu.device import Device

    try:
        found = Device(cache=Cache.default(), threads=host.default_threads()).limits()
    except Error as error:
        return [Line("limits", "none", str(error))]
    return [
        Line("limits", "arithmetic", f"{amount(found.operations['float32'])}FLOP/s in float32"),
        Line("limits", "memory", f"{amount(found.bytes)}B/s from beyond the cores' own caches"),
    ]


def trial() -> Line:
    """Compiles one kernel, runs it on all threads, and checks what it computed."""
    import numpy as np

    from whet.engine.weights import ImportedWeights
    from whet.ir.graph import Graph, Input, make
    from whet.ir.types import TensorType
    from whet.runtime.engine import Engine

    x = make(Input("x", TensorType("float32", (1000,))), ())[0]
    engine = Engine(Graph((x,), (x * 2.0 + 1.0,), ("y",)), ImportedWeights({}))
    given = np.arange(1000, dtype=np.float32)
    start = time.perf_counter()
    try:
        result = engine.session("cpu", cache=False).run({"x": given})["y"]
    except Error as error:
        return Line("trial", "a kernel", "failed", str(error), True)
    taken = time.perf_counter() - start
    if not np.array_equal(result, given * 2 + 1):
        advice = "please report it with the output of `whet devices --json`"
        return Line("trial", "a kernel", "computed something wrong", advice, True)
    return Line("trial", "a kernel", f"compiled, run and right in {1e3 * taken:.0f} ms")
