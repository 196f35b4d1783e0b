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

# The pool's block: settings, the count of busy threads, the CPU mask, then the mailboxes.
CLOSING, WORKERS, IDLE, HOT, PATIENCE, JOIN, MASK_BYTES = 0, 4, 8, 16, 24, 32, 40
ACTIVE, CAPACITY, MASK, MAILBOXES = 64, 68, 128, 256
MASK_BYTES_MOST = MAILBOXES - MASK
# A worker's mailbox. Two cache lines each, since processors fetch them in pairs.
JOB, SLEEPING, TID, AVOIDS, MAILBOX_BYTES = 0, 8, 12, 16, 128
# What a mailbox's job may be; any other value is the address of a run's block, plus OFFER.
FREE, TAKEN, BUSY, STOP, OFFER = 0, 1, 2, 3, 4
# A run's block, a cache line for each word that all threads write.
TABLE, COUNT, TIMES, POOL = 0, 8, 16, 24
JOINED, ARRIVED, STAGE, SLEEPERS, DONE = 64, 128, 192, 200, 256
RUN_BYTES = 320

# What the driver exports: how many arguments each function takes.
SYMBOLS = {"run": 5, "work": 2, "close": 1, "relax_time": 1}


def to_llvm(primitives: str) -> str:
    """The driver's LLVM text on top of the operating system's `primitives` (primitives.py)."""
    return primitives + _BACKOFF + _STAGES + _WALK + _WORKER + _LEASE + _RUN


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
  call void @yield()
  ; A yield that finds nobody else takes about as long as 32 spins.
  %much = add i64 %spins, 32
  ret i64 %much
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

_WORKER = f"""
define void @work(ptr %pool, i64 %worker) {{
entry:
  %offset = mul i64 %worker, {MAILBOX_BYTES}
  %boxes = getelementptr i8, ptr %pool, i64 {MAILBOXES}
  %box = getelementptr i8, ptr %boxes, i64 %offset
  %p_sleeping = getelementptr i8, ptr %box, i64 {SLEEPING}
  %p_idle = getelementptr i8, ptr %pool, i64 {IDLE}
  %p_hot = getelementptr i8, ptr %pool, i64 {HOT}
  %p_active = getelementptr i8, ptr %pool, i64 {ACTIVE}
  %p_capacity = getelementptr i8, ptr %pool, i64 {CAPACITY}
  %p_closing = getelementptr i8, ptr %pool, i64 {CLOSING}
  store atomic i64 {FREE}, ptr %box seq_cst, align 8
  br label %look
look:
  %spins = phi i64 [0, %entry], [%more, %idle], [0, %slept], [0, %offered], [0, %ended]
  %job = load atomic i64, ptr %box acquire, align 8
  %stop = icmp eq i64 %job, {STOP}
  br i1 %stop, label %out, label %going
going:
  %work = icmp ugt i64 %job, {OFFER}
  br i1 %work, label %offered, label %none
none:
  %limit = load i64, ptr %p_idle
  %tired = icmp uge i64 %spins, %limit
  ; With all processors busy no work can come, save what is on its way: leave them theirs.
  %active = load atomic i32, ptr %p_active monotonic, align 4
  %capacity = load i32, ptr %p_capacity
  %full = icmp sge i32 %active, %capacity
  %hot = load i64, ptr %p_hot
  %cool = icmp uge i64 %spins, %hot
  %useless = and i1 %full, %cool
  %rest = or i1 %tired, %useless
  br i1 %rest, label %sleep, label %idle
idle:
  %more = call i64 @backoff(ptr %pool, i64 %spins)
  br label %look
sleep:
  %was = atomicrmw xchg ptr %p_sleeping, i32 1 seq_cst
  %seen = trunc i64 %job to i32
  call void @wait(ptr %box, i32 %seen)
  br label %slept
slept:
  store atomic i32 0, ptr %p_sleeping monotonic, align 4
  br label %look
offered:
  %claim = cmpxchg ptr %box, i64 %job, i64 {BUSY} seq_cst seq_cst
  %mine = extractvalue {{ i64, i1 }} %claim, 1
  br i1 %mine, label %join, label %look
join:
  %address = sub i64 %job, {OFFER}
  %run = inttoptr i64 %address to ptr
  %p_joined = getelementptr i8, ptr %run, i64 {JOINED}
  %p_done = getelementptr i8, ptr %run, i64 {DONE}
  %number = atomicrmw add ptr %p_joined, i32 1 acq_rel
  %thread = zext i32 %number to i64
  call void @walk(ptr %run, i64 %thread)
  ; Free first: who finds the run done also finds its workers free.
  %freed = atomicrmw xchg ptr %box, i64 {FREE} seq_cst
  %done = atomicrmw add ptr %p_done, i32 1 seq_cst
  ; From here on the run's block may be gone; its address only serves to wake whoever sleeps there.
  %awaited = icmp slt i32 %done, 0
  br i1 %awaited, label %wake, label %finished
wake:
  call void @wake(ptr %p_done)
  br label %finished
finished:
  %closing = load atomic i32, ptr %p_closing seq_cst, align 4
  %closed = icmp ne i32 %closing, 0
  br i1 %closed, label %leave, label %ended
leave:
  %left = cmpxchg ptr %box, i64 {FREE}, i64 {STOP} seq_cst seq_cst
  br label %ended
ended:
  br label %look
out:
  ret void
}}
define void @close(ptr %pool) {{
entry:
  %p_closing = getelementptr i8, ptr %pool, i64 {CLOSING}
  %was = atomicrmw xchg ptr %p_closing, i32 1 seq_cst
  %p_workers = getelementptr i8, ptr %pool, i64 {WORKERS}
  %workers = load atomic i32, ptr %p_workers acquire, align 4
  br label %look
look:
  %worker = phi i32 [0, %entry], [%next, %stop]
  %more = icmp slt i32 %worker, %workers
  br i1 %more, label %stop, label %out
stop:
  %wide = zext i32 %worker to i64
  %offset = mul i64 %wide, {MAILBOX_BYTES}
  %boxes = getelementptr i8, ptr %pool, i64 {MAILBOXES}
  %box = getelementptr i8, ptr %boxes, i64 %offset
  %left = cmpxchg ptr %box, i64 {FREE}, i64 {STOP} seq_cst seq_cst
  call void @wake(ptr %box)
  %next = add i32 %worker, 1
  br label %look
out:
  ret void
}}
"""

# The caller's half: reserve processors, then take as many free workers, telling each about the run.
_LEASE = f"""
define internal i32 @reserve(ptr %pool, i64 %wanted) {{
entry:
  %p_active = getelementptr i8, ptr %pool, i64 {ACTIVE}
  %p_capacity = getelementptr i8, ptr %pool, i64 {CAPACITY}
  %capacity = load i32, ptr %p_capacity
  %room = sub i32 %capacity, 1
  %first = load atomic i32, ptr %p_active monotonic, align 4
  br label %look
look:
  %active = phi i32 [%first, %entry], [%found, %look]
  %idle = sub i32 %room, %active
  %some = call i32 @llvm.smax.i32(i32 %idle, i32 0)
  %most = zext i32 %some to i64
  %least = call i64 @llvm.smax.i64(i64 %wanted, i64 0)
  %grant = call i64 @llvm.smin.i64(i64 %most, i64 %least)
  %workers = trunc i64 %grant to i32
  %threads = add i32 %workers, 1
  %after = add i32 %active, %threads
  %swap = cmpxchg ptr %p_active, i32 %active, i32 %after acq_rel monotonic
  %found = extractvalue {{ i32, i1 }} %swap, 0
  %done = extractvalue {{ i32, i1 }} %swap, 1
  br i1 %done, label %out, label %look
out:
  ret i32 %workers
}}
declare i32 @llvm.smax.i32(i32, i32)
declare i64 @llvm.smax.i64(i64, i64)
declare i64 @llvm.smin.i64(i64, i64)

; Fills `leased` with mailboxes; returns how many, plus 1 << 32 if one of them was asleep.
define internal i64 @lease(ptr %pool, ptr %run, ptr %leased, i32 %wanted) {{
entry:
  %p_workers = getelementptr i8, ptr %pool, i64 {WORKERS}
  %workers = load atomic i32, ptr %p_workers acquire, align 4
  %address = ptrtoint ptr %run to i64
  %offer = add i64 %address, {OFFER}
  %boxes = getelementptr i8, ptr %pool, i64 {MAILBOXES}
  br label %look
look:
  %worker = phi i32 [0, %entry], [%next, %step]
  %got = phi i32 [0, %entry], [%got_next, %step]
  %asleep = phi i64 [0, %entry], [%asleep_next, %step]
  %left = icmp slt i32 %worker, %workers
  %lacking = icmp slt i32 %got, %wanted
  %more = and i1 %left, %lacking
  br i1 %more, label %try, label %out
try:
  %wide = zext i32 %worker to i64
  %offset = mul i64 %wide, {MAILBOX_BYTES}
  %box = getelementptr i8, ptr %boxes, i64 %offset
  %job = load atomic i64, ptr %box monotonic, align 8
  %free = icmp eq i64 %job, {FREE}
  br i1 %free, label %take, label %step
take:
  %swap = cmpxchg ptr %box, i64 {FREE}, i64 {TAKEN} acq_rel monotonic
  %mine = extractvalue {{ i64, i1 }} %swap, 1
  br i1 %mine, label %tell, label %step
tell:
  call void @steer(ptr %pool, ptr %box)
  %slot = getelementptr ptr, ptr %leased, i32 %got
  store ptr %box, ptr %slot
  %told = atomicrmw xchg ptr %box, i64 %offer seq_cst
  %p_sleeping = getelementptr i8, ptr %box, i64 {SLEEPING}
  %sleeping = load atomic i32, ptr %p_sleeping seq_cst, align 4
  %sleeps = icmp ne i32 %sleeping, 0
  %got_one = add i32 %got, 1
  br i1 %sleeps, label %wake, label %step
wake:
  call void @wake(ptr %box)
  br label %step
step:
  %got_next = phi i32 [%got, %try], [%got, %take], [%got_one, %tell], [%got_one, %wake]
  %asleep_next = phi i64 [%asleep, %try], [%asleep, %take], [%asleep, %tell], [4294967296, %wake]
  %next = add i32 %worker, 1
  br label %look
out:
  %count = zext i32 %got to i64
  %both = or i64 %count, %asleep
  ret i64 %both
}}
; Takes the offer back from workers that have not begun; returns how many have.
define internal i32 @withdraw(ptr %run, ptr %leased, i64 %count) {{
entry:
  %address = ptrtoint ptr %run to i64
  %offer = add i64 %address, {OFFER}
  br label %look
look:
  %i = phi i64 [0, %entry], [%next, %step]
  %begun = phi i32 [0, %entry], [%begun_next, %step]
  %more = icmp ult i64 %i, %count
  br i1 %more, label %step, label %out
step:
  %slot = getelementptr ptr, ptr %leased, i64 %i
  %box = load ptr, ptr %slot
  %swap = cmpxchg ptr %box, i64 %offer, i64 {FREE} acq_rel monotonic
  %back = extractvalue {{ i64, i1 }} %swap, 1
  %forth = xor i1 %back, true
  %one = zext i1 %forth to i32
  %begun_next = add i32 %begun, %one
  %next = add i64 %i, 1
  br label %look
out:
  ret i32 %begun
}}
; Waits for workers to come, but not long: whoever comes later joins at a later entry.
define internal void @gather(ptr %pool, ptr %run, i64 %lease) {{
entry:
  %asleep = icmp ugt i64 %lease, 4294967295
  %field = select i1 %asleep, i64 {JOIN}, i64 {HOT}
  %p_limit = getelementptr i8, ptr %pool, i64 %field
  %limit = load i64, ptr %p_limit
  %leased = trunc i64 %lease to i32
  %all = add i32 %leased, 1
  %p_joined = getelementptr i8, ptr %run, i64 {JOINED}
  br label %look
look:
  %spins = phi i64 [0, %entry], [%more, %idle]
  %joined = load atomic i32, ptr %p_joined acquire, align 4
  %here = icmp eq i32 %joined, %all
  %late = icmp uge i64 %spins, %limit
  %go = or i1 %here, %late
  br i1 %go, label %out, label %idle
idle:
  call void @relax()
  %more = add i64 %spins, 1
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
  %others = sub i64 %threads, 1
  %reserved = call i32 @reserve(ptr %pool, i64 %others)
  %leased = alloca ptr, i32 %reserved, align 8
  %lease = call i64 @lease(ptr %pool, ptr %run, ptr %leased, i32 %reserved)
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
  %leased_count = and i64 %lease, 4294967295
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
