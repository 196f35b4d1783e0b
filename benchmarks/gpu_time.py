"""The device's own time for what a session runs, without inputs, outputs and the host."""

from __future__ import annotations

from typing import Any

LAUNCHES = 8


def graph_time(session: Any) -> float:
    """Seconds of the graphs of the stage that a session compiled last: the best of some launches,
    each in its turn."""
    (stage,) = list(session._runner._stages.values())[-1:]
    context = stage.program.executable._free[0]
    with context.device.context:
        return min(_seconds(context) for _ in range(LAUNCHES))


def _seconds(context: Any) -> float:
    from whet.targets.cuda.driver import Event

    context.staging.bring_again(context.stream)  # launches write over what is staged
    context.stream.synchronize()
    first, last = Event(timed=True), Event(timed=True)
    first.record(context.stream)
    for segment in context.launches.segments:
        if segment.graph is not None:
            segment.graph.launch(context.stream)
    last.record(context.stream)
    return last.seconds_since(first)
