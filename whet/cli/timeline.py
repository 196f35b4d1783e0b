"""`--trace`: what a model's build, its compiling and some runs do, as a timeline."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from whet.cli import models
from whet.cli.terminal import note, say, working
from whet.progress import Recorder, monitored

if TYPE_CHECKING:
    from whet.cli.parser import Parser

RUNS = 3


def add_trace(parser: Parser) -> None:
    """The option."""
    parser.add_argument(
        "--trace",
        metavar="FILE",
        help="write a timeline of build, compiling and runs; https://ui.perfetto.dev opens it",
    )


def write_trace(options: argparse.Namespace, inputs: Mapping[str, Any]) -> None:
    """Builds, compiles and runs the model in this process, and writes what happened when."""
    from whet.plan import timeline
    from whet.runtime.build import build
    from whet.runtime.engine import load

    with working("tracing") as work:
        recorder = Recorder(work)
        with monitored(recorder):
            is_engine = models.is_engine(options.model)
            engine = load(options.model) if is_engine else build(options.model)
            cache = getattr(options, "cache", False)  # `whet bench` has one of its own: none
            session = engine.session(
                options.device, threads=options.threads, cache=cache, specialize="eager"
            )
            session.run(inputs)
        trace = session.trace(inputs, runs=RUNS)
    slices = [*timeline.of_phases(recorder.phases), *timeline.of_trace(trace)]
    timeline.write(options.trace, slices, {"model": str(options.model)})
    say(f"timeline written to {options.trace}: {len(slices)} slices")
    note("open it at https://ui.perfetto.dev: it stays on this machine")
