"""Which way to run kernels for the very sizes is fastest: measured beside the runs that are served.

Ways are compiled where nobody else wants the processor. A measurement is a slice of a few launches
on noise, for which the device is kept free; between two of them are pauses, so that one run in many
waits, and not for long.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from whet.errors import DeviceError
from whet.plan.kernel import Template
from whet.targets.background import PAUSE, give_way
from whet.targets.cuda.autotune import FEWEST_BYTES, FEWEST_SECONDS, MOST_OTHERS
from whet.targets.cuda.driver import Event
from whet.targets.cuda.graph import Graph
from whet.targets.cuda.tactics import TURNS, Bench, Loaded, extents, has_room, load
from whet.targets.cuda.ways import Way
from whet.targets.special import Special

if TYPE_CHECKING:
    from whet.targets.cuda.bound import Bound
    from whet.targets.cuda.device import Device
    from whet.targets.cuda.executable import Executable

logger = logging.getLogger("whet.cuda")

SLICE = 60e-6
"""Seconds of launches that are measured at a time, unless one takes longer."""
SHARE = 0.1
"""How much of the time may be measurements."""
ROUNDS = 3
"""Slices of each way, of which the shortest counts."""
LEAST_GAIN = 0.02
"""Of a kernel's time, for which another way is taken."""
SECONDS_EACH = (2 + ROUNDS) * PAUSE
"""What a way takes to be loaded and measured, nearly all of it pauses."""


ALL = 1 + MOST_OTHERS
"""Ways to run a kernel."""


def _compared(device: Device, special: Special) -> int:
    """Of how many ways, the likely best first, the cache has the fastest."""
    kept = None if device.cache is None else device.cache.get(_mark(device, special))
    return 1 if kept is None else int(kept)


def _mark(device: Device, special: Special) -> str:
    return device.key(f"ways compared\n{special}")


class Trials:
    """Compiles and measures other ways to run the kernels that a plan has for some sizes; then the
    plan goes over to the fastest."""

    def __init__(self, executable: Executable, bound: Bound, kernels: Sequence[Any]) -> None:
        self._executable, self._bound = weakref.ref(executable), weakref.ref(bound)
        self.device, self.kernels = executable.device, kernels
        self.counts = Counter(k for k in kernels if _has_ways(k))

    def run(self) -> None:
        """Does all of it, on a thread that runs do not wait for; without a device for it, nothing
        changes."""
        if not self.counts or not self._is_wanted:
            return
        try:
            found = self._measured(self._compiled())
        except (DeviceError, MemoryError) as error:
            # As text: a record that is kept would hold the memory of the measurement.
            logger.warning("other ways to run kernels are not measured: %s", str(error))
            return
        here, bound = self._executable(), self._bound()
        if found and here is not None and bound is not None:
            here.take_over(bound, self.kernels)

    @property
    def _is_wanted(self) -> bool:
        """Whether the session is still there, and remembers the sizes."""
        return self._executable() is not None and self._bound() is not None

    def _compiled(self) -> dict[Special, tuple[int, list[bytes]]]:
        """The code of each kernel's other ways, as many as there is time to measure, those first
        that may gain most; and how many will have been compared then."""
        before = {k: _compared(self.device, k) for k in self.counts}
        new = [k for k, count in before.items() if count < ALL]
        reach: dict[Special, int] = {}
        for special in new:
            reach[special] = sum(extents(special.known))
            give_way()
        worth = [k for k in new if reach[k] >= FEWEST_BYTES]
        if not has_room(self.device.context, (k.known for k in worth)):
            return {}
        worth.sort(key=lambda k: -self.counts[k] * reach[k])
        ways = affordable(worth, self.device.tune, before)
        compiled = self.device.compile_ways(ways)
        found: dict[Special, tuple[int, list[bytes]]] = {}
        for way in ways:
            special = Special(way.kernel, way.sizes)
            _, codes = found.get(special, (0, []))
            # There may be no such way: few tiles fit small sizes.
            there = [compiled[way]] if way in compiled else []
            found[special] = 1 + way.rank, codes + there
        return {special: found[special] for special in worth if special in found}

    def _measured(self, ways: dict[Special, tuple[int, list[bytes]]]) -> bool:
        """Measures kernel after kernel, and says whether another way was faster for any."""
        if not ways:
            return False
        device, gained = self.device, False
        until = time.monotonic() + device.tune
        with device.context, device.gate.up(), suppress(TimeoutError):
            bench = Slices(device, until)
            for special, (count, others) in ways.items():
                if time.monotonic() > until or not self._is_wanted:
                    break
                first = device.object_of(special)
                if first is None:
                    continue
                codes = [first, *others]
                times = bench.compare(special.known, codes)  # type: ignore[arg-type]
                said = ", ".join(f"{1e6 * t:.1f}" for t in times)
                logger.debug("%s at %s: %s us", special.name, special.sizes, said)
                if times[0] == float("inf"):
                    continue  # runs take it: it is memory that is not there, or the device
                fastest = min(range(len(codes)), key=times.__getitem__)
                if times[0] < FEWEST_SECONDS:
                    fastest, count = 0, ALL
                if times[fastest] > times[0] * (1 - LEAST_GAIN):
                    fastest = 0
                gained |= fastest > 0
                _choose(device, special, codes[fastest], count)
        return gained


def affordable(
    kernels: Sequence[Special], seconds: float, before: Mapping[Special, int]
) -> list[Way]:
    """Other ways to run kernels, as many as can be measured in so many seconds, of each kernel the
    likely best first, from those on that were compared before."""
    most, found = int(seconds / SECONDS_EACH), list[Way]()
    for rank in range(1, ALL):
        for special in (k for k in kernels if rank >= before[k]):
            # The way that runs now is measured as well.
            most -= 2 if rank == before[special] else 1
            if most < 0:
                return found
            found.append(Way(special.kernel, special.sizes, rank))
    return found


def _has_ways(kernel: Any) -> bool:
    return isinstance(kernel, Special) and isinstance(kernel.kernel, Template)


def _choose(device: Device, special: Special, code: bytes, count: int) -> None:
    """Later runs, and later starts, take the code: the fastest of so many ways."""
    device.replace(special, code)
    if device.cache is not None:
        device.cache.put(device.key(special), code, device.about)
        device.cache.put(_mark(device, special), str(count).encode(), device.about)


class Slices(Bench):
    """Measures a few launches at a time, between runs."""

    def __init__(
        self,
        device: Device,
        until: float = float("inf"),
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        super().__init__(device.context)
        self.gate, self._until, self._pause = device.gate, until, pause
        self._held: list[Any] = []
        """Memory that launches use which are measured: another way may need more."""

    def compare(self, kernel: Template, codes: Sequence[bytes]) -> list[float]:
        """The seconds of a launch by each way; infinite for code that the device refuses. Raises
        TimeoutError where runs leave no moment for it."""
        self._held.clear()
        graphs: list[tuple[Graph, int] | None] = []
        for code in codes:
            graphs.append(self._graph(kernel, code))
            give_way()
        best = [float("inf")] * len(codes)
        for _ in range(ROUNDS):
            # In turns: what else the machine does meets all of them.
            for number, found in enumerate(graphs):
                if found is not None:
                    graph, turns = found
                    best[number] = min(best[number], self._slice(graph) / turns)
        return best

    def _graph(self, kernel: Template, code: bytes) -> tuple[Graph, int] | None:
        """As many launches as a slice has, after a first one to know how many that is."""
        try:
            loaded = load(self.context, code)
            seconds = self._slice(self._launches(kernel, loaded, 1))
        except DeviceError as error:
            logger.debug("%s: %s", kernel.name, str(error))
            return None
        turns = max(1, min(int(SLICE / max(seconds, 1e-9)), TURNS))
        return self._launches(kernel, loaded, turns), turns

    def _launches(self, kernel: Template, loaded: Loaded, turns: int) -> Graph:
        calls: list[Any] = []
        for turn in range(turns):
            calls += self._calls(kernel, loaded, turn)
            self._held.append((self.noise, self.room, self.counters, self.scratch))
        return Graph(calls)

    def _slice(self, graph: Graph) -> float:
        """The time of a graph with the device to itself, and a pause."""
        first, last = Event(timed=True), Event(timed=True)
        self.stream.zero(self.room.pointer, self.room.size)  # nothing else stays in the caches
        self.stream.synchronize()
        with self.gate.closed(self._until):
            first.record(self.stream)
            graph.launch(self.stream)
            last.record(self.stream)
            seconds = last.seconds_since(first)
        self._pause(max(PAUSE, seconds / SHARE))
        return seconds
