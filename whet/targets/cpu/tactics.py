"""Which ways to run a kernel were weighed, and what the cost model thinks of each."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from whet.plan.kernel import Kernel, Template
from whet.plan.target import Tactic
from whet.targets.cpu.architecture import Architecture
from whet.targets.cpu.templates import attention, convolution, lanewise, matmul
from whet.targets.cpu.templates import costs as costs_of
from whet.targets.cpu.templates.contraction import (
    PackedConvolution,
    PackedProduct,
    as_schedule,
    numbers,
)
from whet.targets.cpu.templates.schedule import Schedule
from whet.targets.cpu.templates.specification import Convolution, contiguous

MOST_OTHERS = 8
"""Ways that are told beside the chosen one: the likeliest."""


def tactics(kernel: Kernel, architecture: Architecture, threads: int) -> list[Tactic]:
    """The chosen way first; none where there is only one way."""
    if not isinstance(kernel, Template):
        return []
    op: Any = kernel.op
    if type(op) in (PackedConvolution, PackedProduct):
        return _packed(kernel, architecture, threads)
    if isinstance(op, PackedConvolution | PackedProduct):
        return [Tactic(type(op).__name__.lower(), asdict(as_schedule(op.schedule)))]
    if isinstance(op, matmul.Product):
        problem = matmul.problem_of(kernel, architecture)
        schedule = matmul.schedule_of(problem, architecture)
        return [Tactic("dots" if schedule.dots else "tiles", asdict(schedule))]
    if isinstance(op, attention.FlashAttention):
        flash = attention.schedule_of(attention.problem_of(kernel), architecture)
        return [Tactic("flash", asdict(flash))]
    return []


def _packed(kernel: Template, architecture: Architecture, threads: int) -> list[Tactic]:
    op: Any = kernel.op
    x = kernel.inputs[0]
    assert x is not None
    shape = numbers(x.shape)
    c: Convolution = op.specification(contiguous(shape), shape)
    transforms = isinstance(op, PackedConvolution)
    c = c if transforms else c.flattened()
    chosen = as_schedule(op.schedule)
    if lanewise.fits(c, architecture):
        others = convolution.candidates(c, architecture, threads)
        return [Tactic("lanewise", asdict(s)) for s in dict.fromkeys([chosen, *others])]
    costs = dict(costs_of.weighed(c, architecture, threads, transforms))
    # What the choice was weighed as, before its sum was cut into parts.
    whole = next(
        (s for s in costs if costs_of.in_parts(c, s, architecture, threads) == chosen), None
    )
    likely = sorted((s for s in costs if s != whole), key=lambda s: costs[s])[:MOST_OTHERS]
    return [
        _tactic(chosen, None if whole is None else costs[whole]),
        *(_tactic(schedule, costs[schedule]) for schedule in likely),
    ]


def _tactic(schedule: Schedule, cost: float | None) -> Tactic:
    return Tactic("winograd" if schedule.winograd else "dense", asdict(schedule), cost)
