"""What the machine can do right now: its load, and the peak of a loop of multiply-adds."""

import ctypes
import os
import platform
import threading
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

CHAINS = range(14)
"""Independent accumulators: more than latency times ports, fewer than the registers of AVX2."""

PACKAGES = ["numpy", "llvmlite", "onnx", "onnxruntime", "openvino", "torch", "tensorrt_rtx"]


def describe() -> dict[str, Any]:
    """The processor and the versions that a figure depends on."""
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": installed,
    }


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.machine()


def busy_share(seconds: float = 0.5) -> float:
    """The part of the machine's time that others use, their virtual machines included."""
    before = processor_times()
    time.sleep(seconds)
    spent = [b - a for a, b in zip(before, processor_times())]
    idle = spent[3] + spent[4]
    return 1 - idle / max(sum(spent), 1)


def processor_times() -> list[int]:
    """Ticks by kind since the start: user, nice, system, idle, iowait, irq, softirq, steal."""
    return [int(x) for x in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]


def peak_gflops(threads: int = 2, seconds: float = 0.02) -> float:
    """GFLOP/s of float32 multiply-adds that stay in registers: the roof at this moment."""
    loop, width, _ = peak_loop()
    count = 20_000
    start = time.perf_counter()
    loop(count)
    count = int(count * seconds / (time.perf_counter() - start)) + 1

    workers = [threading.Thread(target=loop, args=(count,)) for _ in range(threads)]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return 2 * len(CHAINS) * width * count * threads / (time.perf_counter() - start) / 1e9


@cache
def peak_loop() -> tuple[Any, int, Any]:
    """The loop as a function of its trip count, its vector width, and what owns the code."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features()
    width = 16 if features.get("avx512f") else 8 if features.get("avx") else 4
    machine = llvm.Target.from_default_triple().create_target_machine(
        features=features.flatten(), opt=2, jit=True
    )
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(peak_text(width)), machine)
    engine.finalize_object()
    loop = ctypes.CFUNCTYPE(None, ctypes.c_int64)(engine.get_function_address("peak"))
    return loop, width, engine


def peak_text(width: int) -> str:
    """LLVM text of a loop over independent chains of multiply-adds."""
    vector = f"<{width} x float>"
    phis = [f"%a{k} = phi {vector} [splat (float 1.0), %entry], [%b{k}, %loop]" for k in CHAINS]
    adds = [f"%b{k} = call {vector} @fma({vector} %a{k}, {vector} %m, {vector} %m)" for k in CHAINS]
    # The results go where the optimiser cannot see, so that the chains are not dead.
    keep = [f'call void asm sideeffect "", "x"({vector} %b{k})' for k in CHAINS]
    body = "\n".join(phis + adds).replace("@fma", f"@llvm.fma.v{width}f32")
    return f"""
declare {vector} @llvm.fma.v{width}f32({vector}, {vector}, {vector})
define void @peak(i64 %count) {{
entry:
  %m = call {vector} asm sideeffect "", "=x,0"({vector} splat (float 0.5))
  br label %loop
loop:
  %i = phi i64 [0, %entry], [%next, %loop]
{body}
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %count
  br i1 %more, label %loop, label %exit
exit:
{chr(10).join(keep)}
  ret void
}}
"""
