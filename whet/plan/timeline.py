"""Timelines in the trace-event format, which https://ui.perfetto.dev and chrome://tracing open.

The format: "Trace Event Format", Google, 2016. A slice is a complete event (ph "X") with times in
microseconds; tracks are threads of one process, named by metadata events (ph "M").
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from whet.engine.atomic import atomic_write
from whet.plan.describe import kind_of, title_of
from whet.plan.trace import Timing, Trace
from whet.progress import Phase

PROCESS = 1


@dataclass(frozen=True)
class Slice:
    """A stretch of time on a track; `start` is on the clock of time.perf_counter."""

    track: str
    name: str
    category: str
    start: float
    seconds: float
    details: Mapping[str, Any] = field(default_factory=dict)


class Recording(Trace):
    """A Trace that can be looked at."""

    def to_perfetto(self, path: str | os.PathLike[str]) -> None:
        """Writes a timeline that https://ui.perfetto.dev and chrome://tracing open: threads are
        tracks, kernels are slices. Raises WriteError."""
        write(path, of_trace(self))


def of_phases(phases: Iterable[Phase], track: str = "build and compile") -> list[Slice]:
    """What a `whet.progress.Recorder` kept."""
    return [Slice(track, p.name, "phase", p.start, p.seconds) for p in phases]


def of_trace(trace: Trace) -> list[Slice]:
    """The steps of a trace: a track for each thread, one for the host's operators, and one for a
    device without threads of ours."""
    found: list[Slice] = []
    for timing in trace.timings:
        if timing.start is not None:
            found += _of_step(timing, timing.start)
    return found


def _of_step(timing: Timing, start: float) -> list[Slice]:
    step = timing.step
    details = {
        "nodes": list(step.nodes),
        "kernel": step.name,
        "reads": [str(value.type) for value in step.reads],
        "writes": [str(value.type) for value in step.writes],
    }
    name, kind = title_of(step), kind_of(step)
    if not timing.threads:
        track = "host" if step.is_host else "device"
        return [Slice(track, name, kind, start, timing.seconds, details)]
    return [
        Slice(f"thread {number}", name, kind, start, end - start, details)
        for number, end in timing.threads
    ]


def events(slices: Sequence[Slice]) -> list[dict[str, Any]]:
    """The trace events of slices; times begin with the first slice."""
    tracks: dict[str, list[Slice]] = defaultdict(list)
    for slice in slices:
        tracks[slice.track].append(slice)
    begin = min((slice.start for slice in slices), default=0.0)
    found = [_metadata("process_name", 0, {"name": "whet"})]
    for number, track in enumerate(sorted(tracks, key=_order), 1):
        found.append(_metadata("thread_name", number, {"name": track}))
        found.append(_metadata("thread_sort_index", number, {"sort_index": number}))
        found += [_complete(slice, number, begin) for slice in tracks[track]]
    return found


def write(
    path: str | os.PathLike[str], slices: Sequence[Slice], about: Mapping[str, str] | None = None
) -> None:
    """Writes a timeline, with text about it beside. Raises WriteError."""
    whole = {
        "traceEvents": events(slices),
        "displayTimeUnit": "ms",
        "otherData": dict(about or {}),
    }
    with atomic_write(path) as file:
        file.write(json.dumps(whole, separators=(",", ":")).encode())


def _order(track: str) -> tuple[bool, int, str]:
    """Threads by their number, behind all else."""
    number = track.removeprefix("thread ")
    return (True, int(number), "") if number.isdecimal() else (False, 0, track)


def _metadata(name: str, track: int, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"ph": "M", "name": name, "pid": PROCESS, "tid": track, "args": arguments}


def _complete(slice: Slice, track: int, begin: float) -> dict[str, Any]:
    # Ends are rounded, not lengths: neighbours that touch must not overlap afterwards.
    start, end = (round(1e9 * (t - begin)) for t in (slice.start, slice.start + slice.seconds))
    return {
        "ph": "X",
        "name": slice.name,
        "cat": slice.category,
        "ts": start / 1000,
        "dur": (end - start) / 1000,
        "pid": PROCESS,
        "tid": track,
        "args": dict(slice.details),
    }
