"""The device's own time for what a session runs, without inputs, outputs and the host."""

from __future__ import annotations

from typing import Any

LAUNCHES = 8


def graph_time(session: Any) -> float:
    """Seconds of the graphs of the stage that a session compiled last: the best of some launches,
    each in its turn."""
    (stage,) = list(session._runner._stages.values())[-1:]
    return program_time(stage.program)


def program_time(program: Any) -> float:
    """The same of one program, at the sizes of its last run."""
    context = program.executable._free[-1]
    with context.device.context:
        return min(_seconds(context) for _ in range(LAUNCHES))


def graphs(program: Any) -> list[Any]:
    """What the last run of a program launched."""
    launches = program.executable._free[-1].launches
    return [s.graph for s in getattr(launches, "segments", ()) if s.graph is not None]


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
