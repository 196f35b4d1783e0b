"""The device's own time for what a session runs, without inputs, outputs and the host."""

from __future__ import annotations

from typing import Any

LAUNCHES = 8


def graph_time(session: Any) -> float:
    """Seconds of the graphs of the stage that a session compiled last: the best of some launches,
    each in its turn."""
    from whet.targets.cuda.driver import Event

    (stage,) = list(session._runner._stages.values())[-1:]
    context = stage.program.executable._free[0]
    best = float("inf")
    for _ in range(LAUNCHES):
        first, last = Event(timed=True), Event(timed=True)
        context.staging.bring_again(context.stream)  # launches write over what is staged
        context.stream.synchronize()
        first.record(context.stream)
        for segment in context.launches.segments:
            if segment.graph is not None:
                segment.graph.launch(context.stream)
        last.record(context.stream)
        best = min(best, last.seconds_since(first))
    return best
