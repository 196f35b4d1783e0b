"""The text of the driver for who takes part: workers at their mailboxes, runs that lease them."""

from __future__ import annotations

from whet.targets.cpu.words import (
    ACTIVE,
    BUSY,
    CAPACITY,
    CLOSING,
    DONE,
    FREE,
    HOT,
    IDLE,
    JOIN,
    JOINED,
    MAILBOX_BYTES,
    MAILBOXES,
    OFFER,
    SLEEPING,
    STOP,
    TAKEN,
    WORKERS,
)

WORKER = f"""
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
LEASE = f"""
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
