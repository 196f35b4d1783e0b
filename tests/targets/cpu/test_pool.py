"""The worker pool: every thread count is right, leases add up, no way out of a process hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from whet.targets.cpu import host, jit, words
from whet.targets.cpu.pool import Pool
from whet.targets.cpu.primitives import _SYSTEMS, to_llvm

ROOT = Path(__file__).parents[3]

# out[i] = in[i] + in[(i + 1) % n] for this thread's share of i: wrong without a barrier in between.
ADD_NEXT = """
define void @add_next(ptr %block, i64 %thread, i64 %threads) {
entry:
  %p_out = getelementptr i8, ptr %block, i64 8
  %p_n = getelementptr i8, ptr %block, i64 16
  %in = load ptr, ptr %block
  %out = load ptr, ptr %p_out
  %n = load i64, ptr %p_n
  %a = mul i64 %n, %thread
  %first = udiv i64 %a, %threads
  %t = add i64 %thread, 1
  %b = mul i64 %n, %t
  %last = udiv i64 %b, %threads
  br label %look
look:
  %i = phi i64 [%first, %entry], [%j, %body]
  %more = icmp ult i64 %i, %last
  br i1 %more, label %body, label %done
body:
  %j = add i64 %i, 1
  %next = urem i64 %j, %n
  %p = getelementptr i64, ptr %in, i64 %i
  %q = getelementptr i64, ptr %in, i64 %next
  %r = getelementptr i64, ptr %out, i64 %i
  %x = load i64, ptr %p
  %y = load i64, ptr %q
  %sum = add i64 %x, %y
  store i64 %sum, ptr %r
  br label %look
done:
  ret void
}
"""
# Spins until the word at the argument is not 0, or for ever: a run of any length that is wanted.
HOLD = """
define void @hold(ptr %word, i64 %thread, i64 %threads) {
  br label %look
look:
  %value = load atomic i64, ptr %word acquire, align 8
  %held = icmp eq i64 %value, 0
  br i1 %held, label %look, label %out
out:
  ret void
}
"""


class Chain:
    """A segment of `entries` dependent kernels over `n` integers, and what it must compute."""

    def __init__(self, seed: int, entries: int = 40, n: int = 257) -> None:
        self.code = jit.load(jit.to_object(ADD_NEXT, host.architecture()), ["add_next"])
        rng = np.random.default_rng(seed)
        self.buffers = np.full((entries + 1, n), -0x5A5A5A5A, np.int64)
        self.buffers[0] = rng.integers(-(2**60), 2**60, n)
        start, row = self.buffers.ctypes.data, self.buffers.strides[0]
        self.blocks = np.array(
            [(start + row * i, start + row * (i + 1), n) for i in range(entries)]
        )
        kernel, step = self.code.address("add_next"), self.blocks.strides[0]
        self.table = np.array(
            [(kernel, self.blocks.ctypes.data + step * i) for i in range(entries)]
        )

    def run(self, pool: Pool, threads: int) -> int:
        self.buffers[1:] = -0x5A5A5A5A
        return pool.run(self.table.ctypes.data, len(self.table), threads)

    def check(self) -> None:
        for before, after in zip(self.buffers, self.buffers[1:]):
            np.testing.assert_array_equal(after, before + np.roll(before, -1))


class Hold:
    """A segment of one kernel that lasts until it is released."""

    def __init__(self) -> None:
        self.code = jit.load(jit.to_object(HOLD, host.architecture()), ["hold"])
        self.word = np.zeros(1, np.int64)
        self.table = np.array([(self.code.address("hold"), self.word.ctypes.data)])
        self.joined = 0

    def start(self, pool: Pool, threads: int) -> threading.Thread:
        def run() -> None:
            self.joined = pool.run(self.table.ctypes.data, 1, threads)

        before = pool.active
        thread = threading.Thread(target=run)
        thread.start()
        wait_until(lambda: pool.active > before)
        return thread


def wait_until(condition, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def make_pool():
    pools = []

    def make(*args, **kwargs) -> Pool:
        pools.append(Pool(*args, **kwargs))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def run_python(source: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
    """Run a script in its own interpreter, after this file's names."""
    head = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]\n"
    head += "from test_pool import *\n"
    return subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(source)],
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 9])
def test_every_thread_count_is_right(make_pool, threads):
    pool = make_pool(capacity=4)
    chain = Chain(seed=threads)
    for _ in range(20):
        assert 1 <= chain.run(pool, threads) <= min(threads, 4)
        chain.check()
    assert pool.active == 0


def eventually(run, threads):
    """Repeats a run until so many threads take part: on a busy machine a worker may come too
    late."""
    deadline = time.monotonic() + 60
    while run() != threads:
        assert time.monotonic() < deadline, f"no run had {threads} threads"


def test_workers_take_part(make_pool):
    pool = make_pool(capacity=2)
    chain = Chain(0, entries=2000)
    eventually(lambda: chain.run(pool, 2), 2)
    chain.check()


def test_sleeping_workers_take_part(make_pool):
    pool = make_pool(capacity=2, idle=0)
    chain = Chain(1, entries=4000)

    def run():
        time.sleep(0.01)
        joined = chain.run(pool, 2)
        chain.check()
        return joined

    eventually(run, 2)


def test_an_empty_segment(make_pool):
    pool = make_pool(capacity=3)
    for _ in range(100):
        pool.run(0, 0, 3)
    assert pool.active == 0


def test_eight_callers_at_once(make_pool):
    pool = make_pool(capacity=4)
    chains = [Chain(seed) for seed in range(8)]
    errors = []

    def hammer(chain: Chain) -> None:
        try:
            for number in range(60):
                chain.run(pool, 1 + number % 4)
                chain.check()
        except BaseException as error:
            errors.append(error)

    callers = [threading.Thread(target=hammer, args=(chain,)) for chain in chains]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert not errors and not any(caller.is_alive() for caller in callers)
    assert pool.active == 0


def test_many_short_runs_from_many_threads(make_pool):
    """Leases change hands as fast as they can, with more threads than processors."""
    pool = make_pool(capacity=6, idle=20e-6)
    chains = [Chain(seed, entries=3, n=7) for seed in range(4)]

    def hammer(chain: Chain) -> None:
        for _ in range(1500):
            pool.run(chain.table.ctypes.data, 3, 3)

    callers = [threading.Thread(target=hammer, args=(chain,)) for chain in chains]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
        assert not caller.is_alive()
    for chain in chains:
        chain.check()
    assert pool.active == 0


def test_leases_never_exceed_the_processors(make_pool):
    pool = make_pool(capacity=3)
    first, second, third = Hold(), Hold(), Hold()
    threads = [first.start(pool, 2)]
    assert pool.active == 2
    threads.append(second.start(pool, 3))  # room for its caller only
    assert pool.active == 3
    threads.append(third.start(pool, 3))  # no room, but a caller is never made to wait
    assert pool.active == 4
    for hold in (first, second, third):
        hold.word[0] = 1
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert pool.active == 0
    assert first.joined in (1, 2) and second.joined == third.joined == 1
    assert len(pool._workers) == 2


def test_one_processor_has_no_workers(make_pool):
    pool = make_pool(capacity=1)
    chain = Chain(5)
    assert chain.run(pool, 8) == 1
    chain.check()
    assert not pool._workers


def test_a_closed_pool_runs_alone(make_pool):
    pool = make_pool(capacity=3)
    chain = Chain(6)
    chain.run(pool, 3)
    pool.close()
    assert not any(worker.is_alive() for worker in pool._workers)
    assert chain.run(pool, 3) == 1
    chain.check()
    assert pool.active == 0


def test_closing_during_a_run(make_pool):
    pool = make_pool(capacity=2)
    hold = Hold()
    caller = hold.start(pool, 2)
    closer = threading.Thread(target=pool.close)
    closer.start()
    closer.join(5)
    assert not closer.is_alive()
    hold.word[0] = 1
    caller.join(5)
    wait_until(lambda: not any(worker.is_alive() for worker in pool._workers))


def test_times(make_pool):
    pool = make_pool(capacity=2)
    chain = Chain(7)
    before = time.perf_counter_ns()
    times, done = pool.run_timed(chain.table.ctypes.data, len(chain.table), 2)
    chain.check()
    assert times.shape == (len(chain.table) + 1,) and done.shape == (2, len(chain.table))
    assert (np.diff(times) >= 0).all() and times[0] > 0
    if host.system() == "linux":
        assert before <= times[0] and times[-1] <= time.perf_counter_ns()
    took_part = done > 0
    assert took_part[0].all(), "the caller takes part in every entry"
    within = (done >= times[:-1]) & (done <= times[1:])
    assert within[took_part].all()


@pytest.mark.parametrize("threads", [-3, 0, 1])
def test_times_of_one_thread(make_pool, threads):
    pool = make_pool(capacity=2)
    chain = Chain(7)
    times, done = pool.run_timed(chain.table.ctypes.data, len(chain.table), threads)
    chain.check()
    assert done.shape == (1, len(chain.table)) and (done <= times[1:]).all()


def test_kernels_may_change_between_runs(make_pool):
    pool = make_pool(capacity=2)
    chain, other = Chain(8), Chain(9)
    chain.run(pool, 2)
    chain.table[::2, 0] = other.code.address("add_next")
    chain.run(pool, 2)
    chain.check()


@pytest.mark.parametrize("threads", [0, -1, -(2**40)])
def test_a_run_has_at_least_its_caller(make_pool, threads):
    pool, chain = make_pool(capacity=3), Chain(14)
    assert chain.run(pool, threads) == 1
    chain.check()
    assert pool.active == 0


def test_portable_waiting(make_pool):
    """Where there is no futex, threads yield and look again."""
    pool = make_pool(capacity=3, idle=1e-4, system="posix")
    chain = Chain(10, entries=500)
    for _ in range(10):
        chain.run(pool, 3)
        chain.check()
        time.sleep(0.002)


@pytest.mark.parametrize("system", sorted(_SYSTEMS))
@pytest.mark.parametrize("level", ["sse2", "neon"])
def test_the_driver_compiles_everywhere(system, level):
    from whet.targets.cpu import driver
    from whet.targets.cpu.architecture import LEVELS, Architecture
    from whet.targets.cpu.primitives import imports

    text = driver.to_llvm(to_llvm(system, LEVELS[level].machine))
    target = Architecture(level, system=system if system != "posix" else "linux")
    assert jit.to_object(text, target, imports(text))


def test_idle_workers_sleep(make_pool):
    pool = make_pool(capacity=4)
    Chain(11).run(pool, 4)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.02


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_fork():
    done = run_python("""
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        pool = Pool.shared()
        chain, hold = Chain(1, entries=2000), Hold()
        chain.run(pool, 2)
        caller = hold.start(pool, 2)  # the child must not take over this run's leases
        child = os.fork()
        if not child:
            assert pool.active == 0
            joined = [chain.run(pool, 2) for _ in range(20)]
            chain.check()
            fresh = jit.load(jit.to_object(ADD_NEXT, host.architecture()), ["add_next"])
            os._exit(40 + max(joined))
        _, status = os.waitpid(child, 0)
        hold.word[0] = 1
        caller.join(5)
        chain.run(pool, 2)
        chain.check()
        print(os.waitstatus_to_exitcode(status) - 40, min(2, pool.capacity))
    """)
    assert (done.returncode, done.stderr) == (0, "")
    joined, expected = done.stdout.split()
    assert joined == expected


@pytest.mark.parametrize("daemon", [True, False])
def test_exit_during_a_run(daemon):
    """The interpreter ends while a thread is inside a segment: for good, or for half a second."""
    done = run_python(f"""
        pool, hold = Pool.shared(), Hold()
        def run():
            pool.run(hold.table.ctypes.data, 1, 2)
            print("ran", flush=True)
        threading.Thread(target=run, daemon={daemon}).start()
        wait_until(lambda: pool.active)
        if not {daemon}:
            threading.Timer(0.3, lambda: hold.word.__setitem__(0, 1)).start()
        print("end", flush=True)
    """)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == (["end"] if daemon else ["end", "ran"])


def test_exit_with_busy_daemons():
    """Daemon threads that hammer the pool while the interpreter is torn down."""
    for seed in range(3):
        done = run_python(f"""
            pool = Pool(capacity=3)
            chains = [Chain(seed, entries=200) for seed in range(3)]
            def run(chain):
                while True:
                    chain.run(pool, 3)
            for chain in chains:
                threading.Thread(target=run, args=(chain,), daemon=True).start()
            time.sleep(0.1 + {seed} * 0.01)
        """)
        assert (done.returncode, done.stderr) == (0, "")


def test_exit_after_a_run_is_quick():
    done = run_python("""
        pool, chain = Pool.shared(), Chain(1)
        chain.run(pool, 2)
        import atexit
        begin = time.perf_counter()
        atexit.register(lambda: None)
        atexit._run_exitfuncs()
        print(time.perf_counter() - begin)
    """)
    assert (done.returncode, done.stderr) == (0, "")
    assert float(done.stdout) < 0.4


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_a_process_on_one_core():
    done = run_python("""
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        pool, chain = Pool.shared(), Chain(1)
        assert chain.run(pool, 2) == 1
        chain.check()
        wide = Pool(capacity=4)  # more threads than processors is slow, but right
        for _ in range(3):
            chain.run(wide, 4)
            chain.check()
        print(pool.capacity, len(pool._workers), os.sched_getaffinity(0))
    """)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[:2] == ["1", "0"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_workers_stay_within_the_mask():
    done = run_python("""
        mask = os.sched_getaffinity(0)
        pool, chain = Pool(capacity=3), Chain(1)
        for _ in range(200):
            chain.run(pool, 3)
        for worker in pool._workers:
            assert os.sched_getaffinity(worker.native_id) <= mask
        assert os.sched_getaffinity(0) == mask
    """)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(host.cores() < 2, reason="one processor")
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_a_worker_is_steered_away_from_a_caller_that_moves(make_pool):
    pool, first, second = make_pool(capacity=2), Hold(), Hold()
    table, mask = np.concatenate([first.table, second.table]), os.sched_getaffinity(0)
    joined: list[int] = []
    caller = threading.Thread(target=lambda: joined.append(pool.run(table.ctypes.data, 2, 2)))
    pool._grow(2)
    try:
        caller.start()
        wait_until(lambda: pool.active == 2)
        (worker,) = pool._workers
        wait_until(lambda: len(os.sched_getaffinity(worker.native_id)) == len(mask) - 1)
        # To a CPU where the worker may be, so that one of the two has to leave.
        there = min(os.sched_getaffinity(worker.native_id))
        os.sched_setaffinity(caller.native_id, {there})
        first.word[0] = 1
        wait_until(lambda: there not in os.sched_getaffinity(worker.native_id))
        assert os.sched_getaffinity(worker.native_id) == mask - {there}
    finally:
        first.word[0] = second.word[0] = 1
        caller.join()
    assert joined in ([1], [2])  # whether it came in time is the machine's affair


def test_runs_share_the_machine_while_kernels_are_made(make_pool):
    pool, chain = make_pool(capacity=3), Chain(4)
    assert pool._words[words.NAP // 4] == 0
    with pool.sharing():
        with pool.sharing():
            chain.run(pool, 3)
        assert pool._words[words.NAP // 4] > 0
        for _ in range(20):
            chain.run(pool, 3)
            chain.check()
    assert pool._words[words.NAP // 4] == 0


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timers on this system")
def test_signals_during_runs(make_pool):
    """Interrupted waits go on, and the handler's exception comes out after the run."""
    pool, chain = make_pool(capacity=3, idle=0), Chain(12)
    hits = []
    before = signal.signal(signal.SIGALRM, lambda *_: hits.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            chain.run(pool, 3)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    chain.check()
    assert hits and pool.active == 0


def test_shared_is_one_per_process():
    assert Pool.shared() is Pool.shared()
    assert Pool.shared().capacity == host.cores()


def test_the_driver_may_come_from_a_cache():
    asked = []

    def cached(text, architecture, imports):
        asked.append(architecture)
        return jit.to_object(text, architecture, imports)

    pool, chain = Pool(to_object=cached), Chain(13)
    chain.run(pool, 2)
    chain.check()
    assert len(asked) == 1
    pool.close()


def test_a_warm_start_takes_no_compiler(tmp_path):
    (tmp_path / "driver.o").write_bytes(driver_object())
    done = run_python(f"""
        data = Path({str(tmp_path / "driver.o")!r}).read_bytes()
        pool = Pool(to_object=lambda *_: data)
        host.architecture()
        assert pool.run(0, 0, 2) <= 2
        print([name for name in sys.modules if name.startswith("llvmlite")])
    """)
    assert done.returncode == 0, done.stderr
    if host.system() == "linux" and host.machine() == "x86_64":
        assert done.stdout.strip() == "[]"


def driver_object() -> bytes:
    found = []

    def compiled(*arguments) -> bytes:
        found.append(jit.to_object(*arguments))
        return found[-1]

    Pool(capacity=1, to_object=compiled)
    return found[0]


TILES = """
define void @tiles(ptr %block, i64 %thread, i64 %threads) {
  %p_out = getelementptr i8, ptr %block, i64 64
  %offset = mul i64 %thread, 1024
  %out = getelementptr i8, ptr %p_out, i64 %offset
  call void @llvm.x86.ldtilecfg(ptr %block)
  call void @llvm.x86.tilezero(i8 0)
  call void @llvm.x86.tilestored64(i8 0, ptr %out, i64 64)
  call void @llvm.x86.tilerelease()
  ret void
}
declare void @llvm.x86.ldtilecfg(ptr)
declare void @llvm.x86.tilezero(i8)
declare void @llvm.x86.tilestored64(i8, ptr, i64)
declare void @llvm.x86.tilerelease()
"""


def test_tile_registers_work_in_every_thread(make_pool):
    if not host.architecture().amx:
        pytest.skip("no AMX here")
    code = jit.load(jit.to_object(TILES, host.architecture()), ["tiles"])
    block = np.full(64 + 2048, 0xA5, np.uint8)
    block[:64] = 0
    block[0], block[16], block[48] = 1, 64, 16  # palette 1; tile 0 has 16 rows of 64 bytes
    table = np.array([(code.address("tiles"), block.ctypes.data)] * 50)
    pool = make_pool(capacity=2)
    eventually(lambda: pool.run(table.ctypes.data, len(table), 2), 2)
    assert not block[64:].any()
