"""The inspector: what each kernel does, how it was chosen, and how near its limit it is."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from whet.engine.atomic import atomic_write
from whet.errors import DeviceError
from whet.ir.graph import Value
from whet.plan.bind import bound
from whet.plan.describe import arena_of, kind_of, source_of, title_of
from whet.plan.kernel import Template
from whet.plan.plan import Plan, Step
from whet.plan.target import Footprint, Limits, Tactic
from whet.plan.trace import Trace
from whet.plan.work import Sizes, Work, nbytes_at, work_of

if TYPE_CHECKING:
    from whet.plan.target import Device

logger = logging.getLogger("whet")

VERSION = 1
"""Of the JSON's layout: what is there keeps its name and meaning."""


@dataclass(frozen=True)
class Buffer:
    """What a kernel reads or writes: `source` is "weight w", "input x", "output y", "made from
    weights", or "arena", in which it lies at `offset`."""

    type: str
    bytes: int
    source: str
    offset: int | None = None


@dataclass(frozen=True)
class Kernel:
    """One step of a plan.

    `read` and `written` are bytes, each element counted once; `operations` counts a multiplication
    and an addition as two. `seconds` is there where runs were measured, and `least` where the
    device's limits are known: what the longer of moving the bytes and doing the arithmetic takes.
    """

    number: int
    title: str
    kind: str
    name: str
    nodes: tuple[str, ...]
    operator: str
    is_reference: bool
    reads: tuple[Buffer, ...]
    writes: tuple[Buffer, ...]
    read: int
    written: int
    operations: int
    tactic: Tactic | None
    alternatives: tuple[Tactic, ...]
    code: str
    key: str | None
    seconds: float | None = None
    least: float | None = None
    bound: str | None = None
    """"memory" or "arithmetic", whichever sets the limit."""
    step: Step | None = field(default=None, repr=False)

    @property
    def reached(self) -> float | None:
        """The limit over the time taken: 1 is as fast as can be; above it, data came from nearer
        caches than the limit takes for granted."""
        return self.least / self.seconds if self.least is not None and self.seconds else None

    def to_plain(self) -> dict[str, Any]:
        """What JSON holds."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "step"}
        for name in ("reads", "writes", "alternatives"):
            plain[name] = [asdict(item) for item in plain[name]]
        plain["tactic"] = None if self.tactic is None else asdict(self.tactic)
        return {**plain, "nodes": list(self.nodes), "reached": self.reached}


@dataclass(frozen=True)
class Inspection:
    """All kernels of a plan, or of a run, and what they share."""

    device: str
    architecture: str
    threads: int
    sizes: Mapping[str, int]
    kernels: tuple[Kernel, ...]
    arena: int
    weights: int
    reference_ops: tuple[str, ...]
    limits: Limits | None = None
    runs: int = 0
    """How many runs `seconds` are the median of."""
    footprint: Footprint | None = None
    """What a session takes of a device that has memory of its own, where that was foreseen."""
    plan: Plan | None = field(default=None, kw_only=True, repr=False)
    """The one that takes longest."""

    @property
    def seconds(self) -> float | None:
        """The time of all kernels together, where it was measured."""
        times = [kernel.seconds for kernel in self.kernels]
        return sum(t for t in times if t is not None) if any(t is not None for t in times) else None

    def to_plain(self) -> dict[str, Any]:
        """What JSON holds: names, numbers, lists; "version" tells its layout."""
        return {
            "version": VERSION,
            "device": self.device,
            "architecture": self.architecture,
            "threads": self.threads,
            "sizes": dict(self.sizes),
            "arena": self.arena,
            "weights": self.weights,
            "reference ops": list(self.reference_ops),
            "limits": None if self.limits is None else asdict(self.limits),
            "footprint": None if self.footprint is None else asdict(self.footprint),
            "runs": self.runs,
            "seconds": self.seconds,
            "kernels": [kernel.to_plain() for kernel in self.kernels],
        }

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """The JSON text; also written to a file where one is named. Raises WriteError."""
        text = json.dumps(self.to_plain(), indent=1) + "\n"
        if path is not None:
            with atomic_write(path) as file:
                file.write(text.encode())
        return text

    def __str__(self) -> str:
        lines = [
            f"{k.number}: {k.title}: {' + '.join(k.nodes) or k.operator}" for k in self.kernels
        ]
        return "\n".join(lines)


def inspect(plan: Plan, device: Device, threads: int, sizes: Sizes = {}) -> Inspection:  # noqa: B006
    """What the steps of a plan do, `sizes` being the values of the named ones; nothing is run."""
    inspector = _Inspector(plan, device, sizes, None)
    kernels = [inspector.kernel(n, step, None) for n, step in enumerate(plan.steps, 1)]
    from whet.runtime.ahead import needed

    found = _inspection([inspector], kernels, threads)
    return replace(found, footprint=None if sizes else device.footprint(plan, needed(plan)))


def inspect_run(
    plans: Sequence[Plan], trace: Trace, runs: int, device: Device, threads: int
) -> Inspection:
    """What the steps of so many traced runs do, those between two plans as well."""
    taken, sizes = trace.per_run(runs), {t.step: t.sizes for t in trace.timings}
    owner = {step: plan for plan in plans for step in plan.steps}
    limits = _limits_of(device)
    inspectors: dict[Plan | None, _Inspector] = {}
    kernels: list[Kernel] = []
    for number, (step, seconds) in enumerate(taken.items(), 1):
        plan = owner.get(step)
        if plan not in inspectors:
            inspectors[plan] = _Inspector(plan, device, sizes[step], limits)
        kernels.append(inspectors[plan].kernel(number, step, seconds))
    # The plan that takes longest goes first: pictures are about that one.
    order = sorted(
        (inspector for plan, inspector in inspectors.items() if plan is not None),
        key=lambda i: -sum(taken.get(step, 0.0) for step in i.steps),
    )
    nothing = _Inspector(None, device, {}, limits)
    return _inspection(order or [nothing], kernels, threads, limits, runs)


def _limits_of(device: Device) -> Limits | None:
    """What a device can do; None where that cannot be measured, for want of a compiler."""
    try:
        return device.limits()
    except DeviceError as error:
        logger.warning("the device's limits are not known: %s", error)
        return None


def _inspection(
    inspectors: Sequence[_Inspector],
    kernels: Sequence[Kernel],
    threads: int,
    limits: Limits | None = None,
    runs: int = 0,
) -> Inspection:
    device, sizes = inspectors[0].device, inspectors[0].sizes
    given = {v: i.sizes for i in inspectors for s in i.steps for v in s.reads if v.is_static}
    return Inspection(
        plan=inspectors[0].plan,
        device=device.capabilities.name,
        architecture=str(device.architecture),
        threads=threads,
        sizes=sizes,
        kernels=tuple(kernels),
        arena=sum(inspector.arena for inspector in inspectors),
        weights=sum(nbytes_at(value.type, sizes) for value, sizes in given.items()),
        reference_ops=tuple(n for k in kernels if k.is_reference for n in k.nodes),
        limits=limits,
        runs=runs,
    )


class _Inspector:
    """A plan at given sizes, or what runs between plans, and what the device can do."""

    def __init__(
        self, plan: Plan | None, device: Device, sizes: Sizes, limits: Limits | None
    ) -> None:
        self.plan, self.device, self.sizes, self.limits = plan, device, sizes, limits
        self.steps: tuple[Step, ...] = ()
        self.outputs: dict[Value, str] = {}
        self.arena, self.offsets = 0, dict[Value, int]()
        if plan is not None:
            self.steps = plan.steps
            self.outputs = dict(zip(plan.graph.outputs, plan.graph.output_names))
            self.arena, self.offsets = arena_of(plan, sizes)

    def kernel(self, number: int, step: Step, seconds: float | None) -> Kernel:
        """One step."""
        work = work_of(step, self.sizes)
        known = None if step.kernel is None else bound(step.kernel, self.sizes)
        weighed = [] if known is None else self.device.tactics(known)
        limit, least = self._limit(step, work)
        return Kernel(
            number=number,
            title=title_of(step),
            kind=kind_of(step),
            name=step.name,
            nodes=step.nodes,
            operator=str(step.value.op),
            is_reference=step.is_host,
            reads=tuple(map(self._buffer, step.reads)),
            writes=tuple(map(self._buffer, step.writes)),
            read=work.read,
            written=work.written,
            operations=work.operations,
            tactic=weighed[0] if weighed else None,
            alternatives=tuple(weighed[1:]),
            code=str(step.kernel or step.value.op),
            key=None if step.kernel is None else self.device.key(step.kernel),
            seconds=seconds,
            least=least,
            bound=limit,
            step=step,
        )

    def _buffer(self, value: Value) -> Buffer:
        is_output = value in self.outputs
        source = f"output {self.outputs[value]}" if is_output else source_of(value) or "arena"
        size = nbytes_at(value.type, self.sizes)
        return Buffer(str(value.type), size, source, self.offsets.get(value))

    def _limit(self, step: Step, work: Work) -> tuple[str | None, float | None]:
        """What keeps a kernel from being faster, and its least seconds."""
        if self.limits is None or step.is_host:
            return None, None
        first = step.kernel.inputs[0] if isinstance(step.kernel, Template) else None
        dtype = step.writes[0].dtype if first is None else first.dtype
        found = {"memory": (work.read + work.written) / self.limits.bytes}
        if dtype in self.limits.operations:
            found["arithmetic"] = work.operations / self.limits.operations[dtype]
        longest = max(found, key=lambda what: found[what])
        return longest, found[longest]
