"""A Plan on a GPU: kernels between two host operators are one CUDA graph.

What a run does is what differs from the run before: the addresses of its inputs and results go into
the few launches that use them, and the graphs are asked for.

Where a plan serves a range of sizes, each set of them that is met is *bound*: how large grids are,
what kernels are told, where buffers lie. Such launches go to the stream one by one, and nothing is
compiled or captured. For sizes that come back, kernels are made in the background, and graphs of
their launches, which later runs take.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from whet.ir.graph import Value
from whet.ir.types import TensorType, Type
from whet.plan import trace
from whet.plan.kernel import Kernel
from whet.plan.plan import Plan, segments
from whet.targets.background import give_way
from whet.targets.bound import NO_SIZES, Sizes
from whet.targets.cuda.array import DeviceArray
from whet.targets.cuda.bound import Bound, Layout
from whet.targets.cuda.context import Context
from whet.targets.cuda.device import Device, holds
from whet.targets.cuda.memory import room
from whet.targets.cuda.trials import Trials
from whet.targets.special import Special, special_of

MOST_BOUND = 256
"""Sets of sizes that a plan keeps what it evaluated for; the one used longest ago goes first."""

MOST_SPECIAL = 64
"""Sets of sizes for which a plan gets kernels of their own."""


def _is_open(kind: Type) -> bool:
    """Whether a tensor has sizes that a run tells."""
    return isinstance(kind, TensorType) and not kind.is_static


class Executable:
    """A Plan compiled for a device: runs on given buffers, from any number of threads."""

    def __init__(self, plan: Plan, device: Device, before: Plan | None = None) -> None:
        self.plan, self.device = plan, device
        self.segments = segments(plan.steps)
        self.kernels = [step.kernel for step in plan.steps]
        others = before.kernels if before else []
        device.compile([*plan.kernels, *others], moving=plan.moving)
        self._free: list[Context] = []
        self.allocate: Callable[[int], Any] = device.heap.take
        """Where arenas come from."""
        self.pace: Any = None
        """How weights come to the device, where they are not all there."""
        self._overlaps: dict[int, bool] = {}
        """Whether the branches of each segment overlap, as far as that is known."""
        self._contexts: weakref.WeakSet[Context] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._bound: OrderedDict[tuple[int, ...], Bound] = OrderedDict()
        self._last: tuple[Sizes, Bound | None] = NO_SIZES, None
        """The sizes asked for last, the very object."""
        self._specials = 0
        self.layout: Layout | None = None
        """Where sizes go that a run tells."""
        # What has no elements may have sizes that no kernel needs.
        if plan.sizes or plan.rooms.members or any(_is_open(o.type) for o in plan.graph.outputs):
            # Code is on the device before a run needs it.
            self._code = [None if k is None else device.code(k) for k in self.kernels]
            self.layout = Layout(plan, self._code, device.context.found.architecture)
        outputs = plan.graph.outputs
        written = {v for step in plan.steps for v in step.writes if step.kernel is not None}
        self._is_direct = (
            bool(plan.graph.inputs)
            and all(not step.is_host for step in plan.steps)
            and all(o in written and holds(o.tensor) for o in outputs)
        )
        """Whether nothing but kernels runs, and they write all outputs."""

    def run(
        self,
        given: Mapping[Value, Any],
        inputs: Sequence[Any],
        out: Mapping[Value, Any],
        run_graph: Callable[..., Any],
        sizes: Sizes = NO_SIZES,
    ) -> Mapping[Value, Any]:
        """Computes the plan's outputs into the `out` arrays; `given` is what was prepared, the same
        object in each run with the same weights, `sizes` are the named sizes of this run. Arrays
        are NumPy's or this device's."""
        with self.device.context:
            context = self._idle() or self._context()
            try:
                if self.layout is not None:
                    self._choose(context, self.bound(sizes))
                if not self.device.gate.is_up:
                    return context.run(given, inputs, out, run_graph)
                with self.device.gate.passing() as streams:
                    results = context.run(given, inputs, out, run_graph)
                    streams.append(context.used)
                    return results
            finally:
                self._free.append(context)

    def _idle(self) -> Context | None:
        """One that no run has now."""
        try:
            return self._free.pop()
        except IndexError:  # another thread may have been sooner
            return None

    def _context(self) -> Context:
        """Another one; it does not know its executable, as both go with the last reference."""
        if self.pace is not None or not self.device.tune:
            self._overlaps = dict.fromkeys([begin for begin, _ in self.segments], False)
        context = Context(self.plan, self.device, self.segments, self.pace)
        if self.layout is None:
            context.fix(self.allocate, self._overlaps)
        else:
            context.open(self.layout)
        self._contexts.add(context)
        return context

    def answer(
        self, given: Mapping[Value, Any], inputs: Sequence[Any], sizes: Sizes = NO_SIZES
    ) -> list[DeviceArray] | None:
        """The outputs, once they are asked for on the caller's stream that the inputs are on; None
        where a run takes more than that."""
        if not self._is_direct or self.pace is not None or trace.current.get() is not None:
            return None
        context = self._idle()
        if context is None:
            return None
        try:
            with self.device.context:
                if self.layout is not None:
                    self._choose(context, self.bound(sizes))
                if not context.is_graph:
                    return None
                stream = inputs[0].stream
                if not self.device.gate.is_up:
                    return context.answer(given, inputs, stream)
                with self.device.gate.passing() as streams:
                    streams.append(stream)
                    return context.answer(given, inputs, stream)
        finally:
            self._free.append(context)

    def answers(self, sizes: Sizes) -> bool:
        """Whether runs with such sizes may be answered."""
        return self._is_direct and (self.layout is None or self.bound(sizes).is_special)

    @property
    def arena(self) -> int:
        """The bytes that one run at a time takes; the most of any sizes so far."""
        if self.layout is not None:
            with self._lock:
                return max((sum(bound.room) for bound in self._bound.values()), default=0)
        functions = [f for k in self.plan.kernels for f in self.device.functions(k)]
        return sum(room(self.plan.arena, functions))

    # Sizes that a run tells.

    def bound(self, sizes: Sizes) -> Bound:
        """The plan at given sizes, evaluated anew or remembered."""
        assert self.layout is not None
        last, found = self._last
        if last is sizes and found is not None:
            return found
        key = tuple(sizes[name] for name in sorted(sizes))
        with self._lock:
            found = self._bound.get(key)
            if found is None:
                found = self._bound[key] = Bound(self.plan, self.layout, sizes)
                while len(self._bound) > MOST_BOUND:
                    self._forget(self._bound.popitem(last=False)[1])
            else:
                self._bound.move_to_end(key)
            self._last = sizes, found
            return found

    def _forget(self, gone: Bound) -> None:
        """Sizes that did not come back for long: their kernels go with the launches."""
        self._specials -= gone.is_wanted
        if gone.is_special:
            for kernel in dict.fromkeys(self.plan.kernels):
                self.device.forget(special_of(kernel, gone.sizes))

    def serves(self, sizes: Sizes) -> bool:
        """Whether its kernels count as far as these sizes need."""
        return self.layout is None or self.bound(sizes).fits

    def specialise(self, sizes: Sizes, ordered: bool = False) -> None:
        """Has kernels made for the very sizes in the background, and graphs of their launches;
        later runs take them.

        With `ordered`, those that might add numbers up in another order stay as they are. Only so
        many sets of sizes get kernels.
        """
        make = self.device.specialised
        self._make(sizes, lambda kernel: make(kernel, sizes, ordered), bool(self.device.tune))

    def settle(self, sizes: Sizes) -> None:
        """Has graphs made in the background of the launches for sizes that come back; the kernels
        stay those for all sizes."""
        self._make(sizes, lambda kernel: kernel, tries=False)

    def _make(self, sizes: Sizes, kernel_for: Callable[[Kernel], Any], tries: bool) -> None:
        """Has the launches for the very sizes made, once, by the kernels that stand for the plan's;
        where it `tries`, other ways to run these are measured then."""
        if self.layout is None:
            return  # no size matters
        bound, plan = self.bound(sizes), weakref.ref(self)
        with self._lock:
            if bound.is_wanted or self._specials >= MOST_SPECIAL:
                return
            bound.is_wanted = True
            self._specials += 1
        kernels: list[Any] = []

        def wanted() -> list[Any]:
            if (here := plan()) is None:
                return []
            kernels.extend(k and kernel_for(k) for k in here.kernels)
            return [kernel for kernel in kernels if isinstance(kernel, Special)]

        def swap() -> None:
            if (here := plan()) is not None:
                here.take_over(bound, kernels)
                if tries:
                    trials = Trials(here, bound, kernels)
                    here.device.measuring.compile(list, trials.run)

        self.device.background.compile(wanted, swap)

    def take_over(self, bound: Bound, kernels: Sequence[Any]) -> None:
        """Loads code for some sizes, and makes the launches of each context."""
        device, code = self.device, []
        with device.context:
            for kernel in kernels:
                code.append(None if kernel is None else device.code(kernel))
                give_way()
            bound.take(code, device.context.found.architecture)
            for context in list(self._contexts):
                context.prepare(bound, give_way)
        bound.is_special = True

    def _choose(self, context: Context, bound: Bound) -> None:
        """Lets a context run with some sizes: what was made for these, or for all."""
        if context.bound is bound and (context.is_graph or not bound.is_special):
            return
        context.bind(bound, self.allocate, self._largest)
        if bound.is_special and not context.is_ready(bound) and not context.is_waiting:
            # One that another thread's run needed, or whose memory is another now.
            context.is_waiting = True
            reference, device = weakref.ref(context), self.device

            def make() -> None:
                if (here := reference()) is None:
                    return
                try:
                    with device.context:
                        here.prepare(bound, give_way)
                finally:
                    here.is_waiting = False

            device.later(make)

    def _largest(self) -> float:
        """The bytes of the arena at the largest sizes there are."""
        return float("inf") if self.layout is None else self.layout.most
