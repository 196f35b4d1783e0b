"""Which of several ways to run each kernel is fastest, found out while others are compiled.

Compiling takes the processors, measuring the device: so a way is measured as soon as its code is
there, and NVIDIA's libraries are loaded and asked meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Mapping
from typing import Any

from whet.errors import DeviceError
from whet.plan.kernel import Kernel, Template
from whet.targets.cuda import codegen, cublas, cudnn
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.driver import Context
from whet.targets.cuda.source import Source
from whet.targets.cuda.tactics import Bench, extents
from whet.targets.cuda.workers import Job

logger = logging.getLogger("whet.cuda")

FEWEST_BYTES = 64 << 10  # that a kernel reaches: below, every way is as fast
FEWEST_SECONDS = 4e-6
"""Below, a launch's latency is what takes time: over 64 kernels of six networks at batch 1 the best
of four tiles gave nothing over the first."""

BYTES_A_SECOND = 2e12  # about, by which kernels are compared that were not measured yet

MOST_OTHERS = 5  # ways to run a kernel, besides the first

DEPENDENCE = 1.03
"""How many times faster a library must be: what comes before and after it cannot overlap with it,
and its code takes memory."""

LEAST_GAIN = 0.02
"""Of the time of all kernels together, for which a library is taken: later starts load it, which
takes 0.4 s, and the device gives it memory."""


class Autotuner:
    """Compiles and measures ways to run kernels until some moment; those of `moving` get none of a
    library, whose launch is captured anew whenever a buffer lies elsewhere."""

    def __init__(
        self,
        context: Context,
        first: Mapping[Kernel, Job],
        counts: Mapping[Kernel, int],
        architecture: Architecture,
        until: float,
        moving: Collection[Kernel] = (),
    ) -> None:
        self.context, self.counts, self.architecture = context, counts, architecture
        self.first = first
        self.until, self._has_libraries = until, False
        templates = {k: job for k, job in first.items() if isinstance(k, Template)}
        reach = {k: sum(extents(k)) for k in templates}
        self.ways = {k: [job] for k, job in templates.items() if reach[k] >= FEWEST_BYTES}
        """Of each kernel that is worth it, the likely best first; a library's are appended."""
        self.seconds: dict[Job, float] = {}
        """What was measured."""
        self._unasked = {k for k in self.ways if k not in moving}
        """Kernels that no library was asked about."""
        self._guesses = {k: reach[k] / BYTES_A_SECOND for k in self.ways}
        self._taken = dict.fromkeys(self.ways, 1)
        """How many tiles are compiled, or are going to be, of the kernels that have others."""
        self._tiles: dict[Template, list[Any]] = {}
        """All, of kernels that more than one was asked of."""
        self._lock = threading.Lock()
        self._bench: Bench | None = None

    def next(self) -> Job | None:
        """Another way to be compiled, on any thread: of the kernel that may gain most by it."""
        with self._lock:
            while time.monotonic() < self.until:
                worth = (k for k in self._taken if self._time(k, FEWEST_SECONDS) >= FEWEST_SECONDS)
                kernel = max(worth, key=self._promise, default=None)
                if kernel is None:
                    return None
                if kernel not in self._tiles:
                    found = codegen.tiles(kernel, self.architecture)
                    self._tiles[kernel] = found[: 1 + MOST_OTHERS]
                number, tiles = self._taken[kernel], self._tiles[kernel]
                if number < len(tiles):
                    self._taken[kernel] += 1
                    job = Job(kernel, tile=tiles[number])
                    self.ways[kernel].append(job)
                    return job
                del self._taken[kernel]
            return None

    def _promise(self, kernel: Template) -> float:
        """What another way may gain, by a measure that only compares."""
        return self.counts[kernel] * self._time(kernel, self._guesses[kernel]) / self._taken[kernel]

    def _time(self, kernel: Template, unknown: float) -> float:
        """The best there is so far, where anything was measured."""
        measured = (self.seconds[job] for job in self.ways[kernel] if job in self.seconds)
        return min(measured, default=unknown)

    def work(self) -> bool:
        """Measures a way whose code is there, or asks a library for ways; False where there is
        nothing to do now."""
        with self.context:  # who is told of progress in between may have chosen another
            return self._work()

    def _work(self) -> bool:
        for kernel, jobs in self.ways.items():
            # A library's way is compared with ours.
            for job in jobs if jobs[0].code else ():
                if job.code and job not in self.seconds:
                    self.seconds[job] = self._measured(kernel, job)
                    return True
        return time.monotonic() < self.until and self._ask()

    def _measured(self, kernel: Template, job: Job) -> float:
        self._bench = bench = self._bench or Bench(self.context)
        if job.is_library and not bench.agrees(kernel, self.ways[kernel][0].code, job.code):
            return float("inf")
        return bench.seconds(kernel, job.code)

    def _ask(self) -> bool:
        """Loads NVIDIA's libraries, where they are installed, or asks them about the kernel that
        takes longest of those that were measured."""
        makers = cublas, cudnn
        if not self._has_libraries:
            self._has_libraries = True
            versions = [maker.version() for maker in makers]
            return any(versions)
        times = {k: self._time(k, 0) for k in self._unasked}
        kernel = max(times, key=lambda k: self.counts[k] * times[k], default=None)
        if kernel is None or times[kernel] < FEWEST_SECONDS:
            return False
        self._unasked.remove(kernel)
        for maker in makers:
            try:
                found = maker.ways(self.context, kernel)
            except DeviceError as error:
                logger.debug("%s: %s", kernel.name, str(error))
                continue
            self.ways[kernel] += [Job(Source("", ()), code) for code in found]
        return True

    def chosen(self) -> dict[Kernel, Job]:
        """For each kernel, the way that takes least time."""
        while self.work():
            pass
        best: dict[str, dict[Template, tuple[float, Job]]] = {"ours": {}}
        for kernel, jobs in self.ways.items():
            said = []
            for job in jobs:
                name, seconds = job.name, self.seconds.get(job, float("inf"))
                said.append(f"{name} {1e6 * seconds:.1f} us")
                cost = seconds * (DEPENDENCE if job.is_library else 1)
                known = best.setdefault(name, {}).get(kernel)
                if known is None or cost < known[0]:
                    best[name][kernel] = cost, job
            logger.debug("%s: %s", kernel.name, ", ".join(said))
        return {kernel: job for kernel, (_, job) in self._fastest(best).items()}

    def is_done(self, kernel: Template) -> bool:
        """Whether, with more time, no other way to run a kernel would be tried."""
        jobs = self.ways.get(kernel)
        if jobs is None or self._time(kernel, FEWEST_SECONDS) < FEWEST_SECONDS:
            return True
        taken, tiles = self._taken.get(kernel), self._tiles.get(kernel, ())
        are_all = taken in (None, len(tiles)) and kernel not in self._unasked
        return are_all and all(job in self.seconds or job.error is not None for job in jobs)

    def _fastest(self, best: Mapping[str, dict[Template, Any]]) -> dict[Template, Any]:
        """The fastest of ours and of the libraries that gain enough in all."""
        found = dict(best["ours"])
        whole = sum(self.counts[k] * cost for k, (cost, _) in found.items())
        for name in best.keys() - {"ours"}:
            better = {k: way for k, way in best[name].items() if way[0] < found[k][0]}
            gain = sum(self.counts[k] * (found[k][0] - way[0]) for k, way in better.items())
            if gain >= LEAST_GAIN * whole:
                found |= better
        return found
