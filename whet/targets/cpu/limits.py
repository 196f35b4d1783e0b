"""What a CPU can do at most: a loop of multiply-adds in registers, and reading from afar.

Both are kernels like any other, walked and timed by the pool.
"""

from __future__ import annotations

import numpy as np

from whet.plan.target import Limits
from whet.targets.cpu import host
from whet.targets.cpu.architecture import Architecture
from whet.targets.cpu.llvm import vector
from whet.targets.cpu.pool import Pool, ToObject

CHAINS = range(12)
"""Sums that do not wait for each other: as many as a multiply-add takes cycles on all ports, and no
more than the registers of every level hold."""

SUMS = 4
"""The same for adding up what is read."""

TURNS = 200_000
STREAMED = 64 << 20
"""Bytes that are read: far more than the caches of single cores hold."""

ROUNDS = 3


def measure(architecture: Architecture, threads: int, to_object: ToObject) -> Limits:
    """The limits of so many threads, in about 0.1 s; other work on the machine lowers them."""
    from whet.targets.cpu import jit

    names = ("multiply", "stream")
    code = jit.load(to_object(to_llvm(architecture), architecture, ()), names)
    memory = host.aligned_memory(STREAMED)
    memory[:] = 1  # pages that nobody has written are all one page
    arguments = np.array([memory.ctypes.data, STREAMED // 512], np.int64)
    table = np.array([[code.address(n), arguments.ctypes.data] for n in names], np.int64)
    pool = Pool.shared(to_object)
    times = [
        np.diff(pool.run_timed(table.ctypes.data, len(names), threads)[0]) for _ in range(ROUNDS)
    ]
    multiply, stream = np.min(times, axis=0) * 1e-9
    took_part = min(threads, pool.capacity)
    lanes = architecture.vector_bytes // 4
    operations = 2 * len(CHAINS) * lanes * TURNS * took_part / multiply
    return Limits({"float32": float(operations)}, float(STREAMED / stream))


def to_llvm(architecture: Architecture) -> str:
    """Both loops as kernels: `void name(ptr arguments, i64 thread, i64 threads)`."""
    lanes = architecture.vector_bytes // 4
    return _multiply(lanes, architecture.fma) + _stream(lanes)


def _multiply(lanes: int, fma: bool) -> str:
    v = vector("float", lanes)
    step = _fused if fma else _apart
    phis = [f"  %a{k} = phi {v} [splat (float 1.0), %entry], [%b{k}, %loop]" for k in CHAINS]
    keep = [f'  call void asm sideeffect "", "x"({v} %b{k})' for k in CHAINS]
    lines = [*phis, *(step(v, k) for k in CHAINS)]
    return f"""
declare {v} @llvm.fma.v{lanes}f32({v}, {v}, {v})
define void @multiply(ptr %arguments, i64 %thread, i64 %threads) {{
entry:
  ; Constants that the compiler does not know, and results that it cannot leave out.
  %m = call {v} asm sideeffect "", "=x,0"({v} splat (float 0.5))
  br label %loop
loop:
  %i = phi i64 [0, %entry], [%next, %loop]
{chr(10).join(lines)}
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, {TURNS}
  br i1 %more, label %loop, label %exit
exit:
{chr(10).join(keep)}
  ret void
}}
"""


def _fused(v: str, k: int) -> str:
    name = f"@llvm.fma.v{v.split(' ')[0][1:]}f32"
    return f"  %b{k} = call {v} {name}({v} %a{k}, {v} %m, {v} %m)"


def _apart(v: str, k: int) -> str:
    return f"  %p{k} = fmul {v} %a{k}, %m\n  %b{k} = fadd {v} %p{k}, %m"


def _stream(lanes: int) -> str:
    """Each thread adds up its part of the memory, 512 bytes in a turn."""
    v, count = vector("float", lanes), 512 // (4 * lanes)
    phis, lines, keep = [], [], []
    for k in range(SUMS):
        last = f"%s{count - SUMS + k}"
        phis.append(f"  %sum{k} = phi {v} [zeroinitializer, %entry], [{last}, %loop]")
        keep.append(f'  call void asm sideeffect "", "x"({v} {last})')
    for k in range(count):
        before = f"%s{k - SUMS}" if k >= SUMS else f"%sum{k}"
        lines.append(f"  %p{k} = getelementptr i8, ptr %block, i64 {4 * lanes * k}")
        lines.append(f"  %x{k} = load {v}, ptr %p{k}, align {4 * lanes}")
        lines.append(f"  %s{k} = fadd {v} {before}, %x{k}")
    return f"""
define void @stream(ptr %arguments, i64 %thread, i64 %threads) {{
entry:
  %memory = load ptr, ptr %arguments
  %p_blocks = getelementptr i8, ptr %arguments, i64 8
  %blocks = load i64, ptr %p_blocks
  %low = mul i64 %thread, %blocks
  %first = sdiv i64 %low, %threads
  %high = add i64 %low, %blocks
  %end = sdiv i64 %high, %threads
  br label %loop
loop:
  %i = phi i64 [%first, %entry], [%next, %loop]
{chr(10).join(phis)}
  %at = mul i64 %i, 512
  %block = getelementptr i8, ptr %memory, i64 %at
{chr(10).join(lines)}
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %end
  br i1 %more, label %loop, label %exit
exit:
{chr(10).join(keep)}
  ret void
}}
"""
