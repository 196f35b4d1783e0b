"""How threads wait, wake and tell the time, as LLVM text for each operating system."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from dataclasses import dataclass
from string import Template
from typing import Any

from whet.targets.cpu import host
from whet.targets.cpu.words import AVOIDS, MASK, MASK_BYTES, MASK_BYTES_MOST, TID


@dataclass(frozen=True)
class Primitives:
    """LLVM text of `@relax @yield @nap @wait @wake @now @cpu @steer`, and what it imports.

    `wait(word, seen)` sleeps while the 32-bit word has the value seen, and may wake for nothing;
    `wake(word)` wakes all that sleep there; `now` is in nanoseconds, on the clock of
    `time.perf_counter_ns` under Linux; `cpu` is where the caller runs, 0 where it cannot be told;
    `steer(pool, mailbox)` keeps a worker off that CPU.
    """

    llvm: str
    symbols: Mapping[str, int]


def primitives(kind: str | None = None) -> Primitives:
    """What this system offers: linux, darwin, windows, or posix (yields, then looks each 0.5 ms).

    Linux is what is tested; posix is tested under Linux; the text of all is compiled in a test.
    """
    kind = kind or kind_of(host.system())
    text = to_llvm(kind, host.machine())
    library = ctypes.WinDLL("KernelBase") if kind == "windows" else host.libc()  # type: ignore
    symbols = {name: _address(library, name) for name in imports(text)}
    return Primitives(text, symbols)


def kind_of(system: str) -> str:
    """Which of the kinds an operating system is."""
    return system if system in _SYSTEMS else "posix"


def to_llvm(kind: str, machine: str) -> str:
    """The primitives' text for one system and instruction set."""
    futex, setaffinity = _SYSCALLS[machine]
    text = Template(_RELAX[machine] + _SYSTEMS[kind])
    return text.substitute(futex=futex, setaffinity=setaffinity, clock=_MONOTONIC.get(kind, 1))


def imports(text: str) -> list[str]:
    """The functions that a text declares and does not define, LLVM's own left out."""
    return re.findall(r"^declare \w+ @((?!llvm\.)[\w.]+)\(", text, re.MULTILINE)


def _address(library: Any, name: str) -> int:
    return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0


_MONOTONIC = {"darwin": 6}
_SYSCALLS = {"x86_64": (202, 203), "aarch64": (98, 122)}
_RELAX = {
    "x86_64": """
define internal void @relax() {
  call void @llvm.x86.sse2.pause()
  ret void
}
declare void @llvm.x86.sse2.pause()
""",
    "aarch64": """
define internal void @relax() {
  call void @llvm.aarch64.isb(i32 15)
  ret void
}
declare void @llvm.aarch64.isb(i32)
""",
}
_CLOCK = """
define internal i64 @now() {
  %time = alloca { i64, i64 }
  %code = call i32 @clock_gettime(i32 $clock, ptr %time)
  %p_fraction = getelementptr i8, ptr %time, i64 8
  %seconds = load i64, ptr %time
  %fraction = load i64, ptr %p_fraction
  %whole = mul i64 %seconds, 1000000000
  %now = add i64 %whole, %fraction
  ret i64 %now
}
declare i32 @clock_gettime(i32, ptr)
define internal void @yield() {
  %code = call i32 @sched_yield()
  ret void
}
declare i32 @sched_yield()
define internal void @nap(i32 %microseconds) {
  %code = call i32 @usleep(i32 %microseconds)
  ret void
}
declare i32 @usleep(i32)
"""
_NO_STEERING = """
define internal i32 @cpu() {
  ret i32 0
}
define internal void @steer(ptr %pool, ptr %box) {
  ret void
}
"""

# Linux: futex. A worker is steered when its caller's CPU is not the one it avoids already: the
# scheduler likes to wake a thread where its waker runs, and takes milliseconds to think again.
_FUTEX = f"""
declare i64 @syscall(i64, ...)
define internal void @wait(ptr %word, i32 %seen) {{
  %code = call i64 (i64, ...) @syscall(i64 $futex, ptr %word, i32 128, i32 %seen, ptr null)
  ret void
}}
define internal void @wake(ptr %word) {{
  %code = call i64 (i64, ...) @syscall(i64 $futex, ptr %word, i32 129, i32 2147483647)
  ret void
}}
declare i32 @sched_getcpu()
define internal i32 @cpu() {{
  %cpu = call i32 @sched_getcpu()
  ret i32 %cpu
}}
declare void @llvm.memcpy.inline.p0.p0.i64(ptr, ptr, i64, i1)
define internal void @steer(ptr %pool, ptr %box) {{
  %mask = alloca [{MASK_BYTES_MOST} x i8], align 8
  %p_bytes = getelementptr i8, ptr %pool, i64 {MASK_BYTES}
  %bytes = load i64, ptr %p_bytes
  %cpu = call i32 @cpu()
  %wide = zext i32 %cpu to i64
  %bits = shl i64 %bytes, 3
  %known = icmp ult i64 %wide, %bits
  %p_avoids = getelementptr i8, ptr %box, i64 {AVOIDS}
  %avoids = load i32, ptr %p_avoids
  %news = icmp ne i32 %avoids, %cpu
  %go = and i1 %known, %news
  br i1 %go, label %set, label %out
set:
  store i32 %cpu, ptr %p_avoids
  %p_mask = getelementptr i8, ptr %pool, i64 {MASK}
  call void @llvm.memcpy.inline.p0.p0.i64(
      ptr %mask, ptr %p_mask, i64 {MASK_BYTES_MOST}, i1 false)
  %index = lshr i64 %wide, 6
  %p_word = getelementptr i64, ptr %mask, i64 %index
  %word = load i64, ptr %p_word
  %shift = and i64 %wide, 63
  %bit = shl i64 1, %shift
  %others = xor i64 %bit, -1
  %less = and i64 %word, %others
  store i64 %less, ptr %p_word
  %p_tid = getelementptr i8, ptr %box, i64 {TID}
  %tid = load i32, ptr %p_tid
  %code = call i64 (i64, ...) @syscall(i64 $setaffinity, i32 %tid, i64 %bytes, ptr %mask)
  br label %out
out:
  ret void
}}
"""

_ULOCK = """
declare i32 @__ulock_wait(i32, ptr, i64, i32)
declare i32 @__ulock_wake(i32, ptr, i64)
define internal void @wait(ptr %word, i32 %seen) {
  %wide = zext i32 %seen to i64
  %code = call i32 @__ulock_wait(i32 1, ptr %word, i64 %wide, i32 0)
  ret void
}
define internal void @wake(ptr %word) {
  %code = call i32 @__ulock_wake(i32 257, ptr %word, i64 0)
  ret void
}
"""
_ADDRESS_WAIT = """
declare i32 @WaitOnAddress(ptr, ptr, i64, i32)
declare void @WakeByAddressAll(ptr)
declare i32 @SwitchToThread()
declare void @GetSystemTimePreciseAsFileTime(ptr)
define internal void @wait(ptr %word, i32 %seen) {
  %compare = alloca i32
  store i32 %seen, ptr %compare
  %code = call i32 @WaitOnAddress(ptr %word, ptr %compare, i64 4, i32 -1)
  ret void
}
define internal void @wake(ptr %word) {
  call void @WakeByAddressAll(ptr %word)
  ret void
}
define internal void @yield() {
  %code = call i32 @SwitchToThread()
  ret void
}
define internal void @nap(i32 %microseconds) {
  call void @yield()
  ret void
}
define internal i64 @now() {
  %time = alloca i64
  call void @GetSystemTimePreciseAsFileTime(ptr %time)
  %ticks = load i64, ptr %time
  %now = mul i64 %ticks, 100
  ret i64 %now
}
"""
_LOOK_AGAIN = """
define internal void @wait(ptr %word, i32 %seen) {
  %code = call i32 @usleep(i32 500)
  ret void
}
define internal void @wake(ptr %word) {
  ret void
}
"""
_SYSTEMS = {
    "linux": _CLOCK + _FUTEX,
    "darwin": _CLOCK + _ULOCK + _NO_STEERING,
    "windows": _ADDRESS_WAIT + _NO_STEERING,
    "posix": _CLOCK + _LOOK_AGAIN + _NO_STEERING,
}
