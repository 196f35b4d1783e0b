"""The native driver: LLVM text that leases workers, walks a segment's table and joins again.

A *segment* is a table of {kernel pointer, argument pointer}; a kernel is
`void (ptr arguments, i64 thread, i64 threads)`. Every thread of a run calls every entry, with a
barrier after each. A run keeps its state in a block on its caller's stack, so that any number of
runs go on at once; what they share is one counter of busy threads and a mailbox per worker.

The barrier is a central one with a generation word (Mellor-Crummey and Scott, 1991, section 3.1).
Its generation, the *stage*, also carries how many threads take part, so that a worker that wakes
up late joins at the next entry instead of holding up the run, or is sent back if none is left.
"""

from __future__ import annotations

from whet.targets.cpu.leases import LEASE, WORKER
from whet.targets.cpu.words import (
    ACTIVE,
    ARRIVED,
    COUNT,
    CPU,
    DONE,
    HOT,
    JOINED,
    LEASED,
    LEASES,
    NAP,
    PATIENCE,
    POOL,
    RUN_BYTES,
    SLEEPERS,
    STAGE,
    TIMES,
)

# What the driver exports: how many arguments each function takes.
SYMBOLS = {"run": 5, "work": 2, "close": 1, "relax_time": 1}


def to_llvm(primitives: str) -> str:
    """The driver's LLVM text on top of the operating system's `primitives` (primitives.py)."""
    return primitives + _BACKOFF + _STAGES + _STEERING + _WALK + WORKER + LEASE + _RUN


# Waiting politely: first spin, then let others have the processor, then (in the callers) sleep.
_BACKOFF = f"""
define internal i64 @backoff(ptr %pool, i64 %spins) {{
  %p_hot = getelementptr i8, ptr %pool, i64 {HOT}
  %hot = load i64, ptr %p_hot
  %young = icmp ult i64 %spins, %hot
  br i1 %young, label %spin, label %give
spin:
  call void @relax()
  %more = add i64 %spins, 1
  ret i64 %more
give:
  %p_nap = getelementptr i8, ptr %pool, i64 {NAP}
  %nap = load atomic i32, ptr %p_nap monotonic, align 4
  %shares = icmp ne i32 %nap, 0
  br i1 %shares, label %sleep, label %yield
yield:
  call void @yield()
  ; A yield that finds nobody else takes about as long as 32 spins.
  %much = add i64 %spins, 32
  ret i64 %much
sleep:
  call void @nap(i32 %nap)
  %long = add i64 %spins, %hot
  ret i64 %long
}}
define i64 @relax_time(i64 %spins) {{
entry:
  %before = call i64 @now()
  br label %look
look:
  %i = phi i64 [0, %entry], [%j, %look]
  call void @relax()
  %j = add i64 %i, 1
  %more = icmp ult i64 %j, %spins
  br i1 %more, label %look, label %out
out:
  %after = call i64 @now()
  %took = sub i64 %after, %before
  ret i64 %took
}}
"""

# A stage is (entry's number from 1) << 32 | threads; 0 before the start. Waiters sleep on its upper
# half, which every publication changes.
_STAGES = f"""
define internal void @publish(ptr %run, i64 %stage) {{
  %p_stage = getelementptr i8, ptr %run, i64 {STAGE}
  %p_sleepers = getelementptr i8, ptr %run, i64 {SLEEPERS}
  %old = atomicrmw xchg ptr %p_stage, i64 %stage seq_cst
  %sleepers = load atomic i32, ptr %p_sleepers seq_cst, align 4
  %any = icmp ne i32 %sleepers, 0
  br i1 %any, label %wake, label %out
wake:
  %p_upper = getelementptr i8, ptr %p_stage, i64 4
  call void @wake(ptr %p_upper)
  br label %out
out:
  ret void
}}
define internal i64 @next_stage(ptr %run, i64 %seen) {{
entry:
  %p_pool = getelementptr i8, ptr %run, i64 {POOL}
  %pool = load ptr, ptr %p_pool
  %p_patience = getelementptr i8, ptr %pool, i64 {PATIENCE}
  %patience = load i64, ptr %p_patience
  %p_stage = getelementptr i8, ptr %run, i64 {STAGE}
  %p_upper = getelementptr i8, ptr %p_stage, i64 4
  %p_sleepers = getelementptr i8, ptr %run, i64 {SLEEPERS}
  br label %look
look:
  %spins = phi i64 [0, %entry], [%more, %idle], [0, %sleep]
  %stage = load atomic i64, ptr %p_stage acquire, align 8
  %same = icmp eq i64 %stage, %seen
  br i1 %same, label %stay, label %out
stay:
  %tired = icmp uge i64 %spins, %patience
  br i1 %tired, label %sleep, label %idle
idle:
  %more = call i64 @backoff(ptr %pool, i64 %spins)
  br label %look
sleep:
  %in = atomicrmw add ptr %p_sleepers, i32 1 seq_cst
  %upper = lshr i64 %seen, 32
  %number = trunc i64 %upper to i32
  call void @wait(ptr %p_upper, i32 %number)
  %gone = atomicrmw sub ptr %p_sleepers, i32 1 seq_cst
  br label %look
out:
  ret i64 %stage
}}
define internal i64 @barrier(ptr %run, i64 %stage) {{
  %p_arrived = getelementptr i8, ptr %run, i64 {ARRIVED}
  %before = atomicrmw add ptr %p_arrived, i32 1 acq_rel
  %here = add i32 %before, 1
  %threads = trunc i64 %stage to i32
  %last = icmp eq i32 %here, %threads
  br i1 %last, label %lead, label %follow
lead:
  store atomic i32 0, ptr %p_arrived monotonic, align 4
  %number = lshr i64 %stage, 32
  %p_times = getelementptr i8, ptr %run, i64 {TIMES}
  %times = load ptr, ptr %p_times
  %timed = icmp ne ptr %times, null
  br i1 %timed, label %time, label %open
time:
  %p_time = getelementptr i64, ptr %times, i64 %number
  %now = call i64 @now()
  store i64 %now, ptr %p_time
  br label %open
open:
  %next = call i64 @stage_after(ptr %run, i64 %number)
  call void @publish(ptr %run, i64 %next)
  ret i64 %next
follow:
  %opened = call i64 @next_stage(ptr %run, i64 %stage)
  ret i64 %opened
}}
define internal i64 @stage_after(ptr %run, i64 %number) {{
  %p_joined = getelementptr i8, ptr %run, i64 {JOINED}
  %joined = load atomic i32, ptr %p_joined acquire, align 4
  %threads = zext i32 %joined to i64
  %next = add i64 %number, 1
  %upper = shl i64 %next, 32
  %stage = or i64 %upper, %threads
  ret i64 %stage
}}
"""

_WALK = f"""
define internal void @walk(ptr %run, i64 %thread) {{
entry:
  %table = load ptr, ptr %run
  %p_count = getelementptr i8, ptr %run, i64 {COUNT}
  %count = load i64, ptr %p_count
  %p_stage = getelementptr i8, ptr %run, i64 {STAGE}
  %now = load atomic i64, ptr %p_stage acquire, align 8
  br label %look
look:
  %stage = phi i64 [%now, %entry], [%later, %outside], [%next, %join]
  %number = lshr i64 %stage, 32
  %ended = icmp ugt i64 %number, %count
  br i1 %ended, label %out, label %member
member:
  %threads = and i64 %stage, 4294967295
  %inside = icmp ult i64 %thread, %threads
  br i1 %inside, label %call, label %outside
outside:
  %later = call i64 @next_stage(ptr %run, i64 %stage)
  br label %look
call:
  %leads = icmp eq i64 %thread, 0
  br i1 %leads, label %look_around, label %run_it
look_around:
  call void @steer_away(ptr %run)
  br label %run_it
run_it:
  %index = sub i64 %number, 1
  %entry_at = getelementptr {{ ptr, ptr }}, ptr %table, i64 %index
  %p_arguments = getelementptr i8, ptr %entry_at, i64 8
  %kernel = load ptr, ptr %entry_at
  %arguments = load ptr, ptr %p_arguments
  call void %kernel(ptr %arguments, i64 %thread, i64 %threads)
  %p_times = getelementptr i8, ptr %run, i64 {TIMES}
  %times = load ptr, ptr %p_times
  %timed = icmp ne ptr %times, null
  br i1 %timed, label %time, label %join
time:
  ; Behind the ends of all entries there is a row for each thread: when it was done with each.
  %row = mul i64 %thread, %count
  %behind = add i64 %row, %count
  %place = add i64 %behind, %number
  %p_time = getelementptr i64, ptr %times, i64 %place
  %done = call i64 @now()
  store i64 %done, ptr %p_time
  br label %join
join:
  %next = call i64 @barrier(ptr %run, i64 %stage)
  br label %look
out:
  ret void
}}
"""

# Where the scheduler has moved the caller to a worker's CPU they would share it to the end of the
# run: it does not take a CPU for free on which a process runs that gives way to all others.
_STEERING = f"""
define internal void @steer_away(ptr %run) {{
entry:
  %p_cpu = getelementptr i8, ptr %run, i64 {CPU}
  %before = load i32, ptr %p_cpu
  %cpu = call i32 @cpu()
  %same = icmp eq i32 %cpu, %before
  br i1 %same, label %out, label %moved
moved:
  store i32 %cpu, ptr %p_cpu
  %p_pool = getelementptr i8, ptr %run, i64 {POOL}
  %pool = load ptr, ptr %p_pool
  %p_leased = getelementptr i8, ptr %run, i64 {LEASED}
  %leased = load ptr, ptr %p_leased
  %p_leases = getelementptr i8, ptr %run, i64 {LEASES}
  %leases = load i64, ptr %p_leases
  br label %look
look:
  %i = phi i64 [0, %moved], [%next, %steer]
  %more = icmp ult i64 %i, %leases
  br i1 %more, label %steer, label %out
steer:
  %slot = getelementptr ptr, ptr %leased, i64 %i
  %box = load ptr, ptr %slot
  call void @steer(ptr %pool, ptr %box)
  %next = add i64 %i, 1
  br label %look
out:
  ret void
}}
"""

_RUN = f"""
define i64 @run(ptr %pool, ptr %table, i64 %count, i64 %threads, ptr %times) {{
entry:
  %run = alloca [{RUN_BYTES} x i8], align 64
  %p_count = getelementptr i8, ptr %run, i64 {COUNT}
  %p_times = getelementptr i8, ptr %run, i64 {TIMES}
  %p_pool = getelementptr i8, ptr %run, i64 {POOL}
  %p_joined = getelementptr i8, ptr %run, i64 {JOINED}
  %p_arrived = getelementptr i8, ptr %run, i64 {ARRIVED}
  %p_stage = getelementptr i8, ptr %run, i64 {STAGE}
  %p_sleepers = getelementptr i8, ptr %run, i64 {SLEEPERS}
  %p_done = getelementptr i8, ptr %run, i64 {DONE}
  store ptr %table, ptr %run
  store i64 %count, ptr %p_count
  store ptr %times, ptr %p_times
  store ptr %pool, ptr %p_pool
  store i32 1, ptr %p_joined
  store i32 0, ptr %p_arrived
  store i64 0, ptr %p_stage
  store i32 0, ptr %p_sleepers
  store i32 0, ptr %p_done
  %p_cpu = getelementptr i8, ptr %run, i64 {CPU}
  %cpu = call i32 @cpu()
  store i32 %cpu, ptr %p_cpu
  %others = sub i64 %threads, 1
  %reserved = call i32 @reserve(ptr %pool, i64 %others)
  %leased = alloca ptr, i32 %reserved, align 8
  %lease = call i64 @lease(ptr %pool, ptr %run, ptr %leased, i32 %reserved)
  %leased_count = and i64 %lease, 4294967295
  %p_leased = getelementptr i8, ptr %run, i64 {LEASED}
  %p_leases = getelementptr i8, ptr %run, i64 {LEASES}
  store ptr %leased, ptr %p_leased
  store i64 %leased_count, ptr %p_leases
  call void @gather(ptr %pool, ptr %run, i64 %lease)
  %timed = icmp ne ptr %times, null
  br i1 %timed, label %time, label %start
time:
  %now = call i64 @now()
  store i64 %now, ptr %times
  br label %start
start:
  %stage = call i64 @stage_after(ptr %run, i64 0)
  call void @publish(ptr %run, i64 %stage)
  call void @walk(ptr %run, i64 0)
  %begun = call i32 @withdraw(ptr %run, ptr %leased, i64 %leased_count)
  call void @finish(ptr %pool, ptr %p_done, i32 %begun)
  %p_active = getelementptr i8, ptr %pool, i64 {ACTIVE}
  %back = add i32 %reserved, 1
  %before = atomicrmw sub ptr %p_active, i32 %back acq_rel
  %joined = load atomic i32, ptr %p_joined monotonic, align 4
  %took_part = zext i32 %joined to i64
  ret i64 %took_part
}}
; Waits until `begun` workers are done; the sign bit of the word says that the caller sleeps.
define internal void @finish(ptr %pool, ptr %p_done, i32 %begun) {{
entry:
  %p_patience = getelementptr i8, ptr %pool, i64 {PATIENCE}
  %patience = load i64, ptr %p_patience
  br label %look
look:
  %spins = phi i64 [0, %entry], [%more, %idle], [%spins, %sleep]
  %word = load atomic i32, ptr %p_done acquire, align 4
  %done = and i32 %word, 2147483647
  %all = icmp eq i32 %done, %begun
  br i1 %all, label %out, label %stay
stay:
  %tired = icmp uge i64 %spins, %patience
  br i1 %tired, label %mark, label %idle
idle:
  %more = call i64 @backoff(ptr %pool, i64 %spins)
  br label %look
mark:
  %old = atomicrmw or ptr %p_done, i32 -2147483648 seq_cst
  %marked = or i32 %old, -2147483648
  %count = and i32 %old, 2147483647
  %now_all = icmp eq i32 %count, %begun
  br i1 %now_all, label %out, label %sleep
sleep:
  call void @wait(ptr %p_done, i32 %marked)
  br label %look
out:
  ret void
}}
"""
