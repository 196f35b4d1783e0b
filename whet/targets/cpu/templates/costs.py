"""Which schedules are likely to be fast."""

from __future__ import annotations

import math

from whet.targets.cpu.architecture import Architecture
from whet.targets.cpu.templates.schedule import Schedule
from whet.targets.cpu.templates.specification import Convolution


def candidates(c: Convolution, architecture: Architecture, threads: int) -> list[Schedule]:
    """Schedules worth measuring, the best guess first."""
    outputs, vectors = (14, 2) if c.taps > 1 else (6, 4)
    if architecture.vector_registers < 32:
        outputs, vectors = (6, 2)
    pixels = c.batch * math.prod(c.outputs)
    if pixels == 1:
        outputs, vectors = 1, 8
    teams = 1 if pixels * 4 * c.channels > c.weight_bytes else 0
    unroll = 2 if c.taps > 1 else 4
    ahead = c.weight_bytes >= 1 << 20 and not teams
    return [Schedule(outputs, vectors, unroll, teams, ahead=ahead)]
