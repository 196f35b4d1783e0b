"""`whet refit`: other weights for an engine file."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from whet.cli import models
from whet.cli.status import OK, UsageError
from whet.cli.terminal import duration, say, size, table, working

ABOUT = """\
Exchanges the weights of an engine, by their names in the ONNX model, also those that were folded or
merged. New ones come from an ONNX model of the same network, .safetensors, .npz or another engine.
Without a source it lists the engine's weights: which are missing, and which cannot be exchanged."""

EXAMPLES = """\
  whet refit model.whet                           which weights it has
  whet refit model.whet trained.onnx              all of them, in place
  whet refit stripped.whet model.safetensors -o model.whet
  whet refit model.whet adapter.npz --partial -o adapted.whet"""


def add(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser(
        "refit", help="exchange an engine's weights", about=ABOUT, examples=EXAMPLES
    )
    parser.add_argument("engine", metavar="ENGINE", help="an engine (.whet)")
    parser.add_argument("source", metavar="SOURCE", nargs="?", help="where the new weights are")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="the engine with them (ENGINE itself)"
    )
    parser.add_argument(
        "--partial", action="store_true", help="some weights may stay as they are, or missing"
    )
    parser.set_defaults(command=refit)


def refit(options: argparse.Namespace) -> int:
    """Exchanges and saves, or lists."""
    from whet.runtime.build import with_kernels
    from whet.runtime.engine import load

    if not models.is_engine(options.engine):
        raise UsageError(f"{options.engine} is no engine; `whet build` makes one of a model")
    if options.source is None and (options.output or options.partial):
        raise UsageError("where are the new weights? whet refit ENGINE SOURCE -o FILE")
    # Machine code in the file is carried along, not run.
    engine = load(options.engine, allow_code=True)
    if options.source is None:
        _list(engine)
        return OK
    start, target = time.perf_counter(), Path(options.output or options.engine)
    with working(f"refitting from {Path(options.source).name}"):
        architectures = engine.architectures
        engine.refit(options.source, options.partial)
        if engine.architectures != architectures:  # the graph is another
            engine = with_kernels(engine, architectures)
        engine.save(target)
    said = f"{len(engine.missing_weights)} weights are missing still" * bool(engine.missing_weights)
    taken = duration(time.perf_counter() - start)
    say(
        f"{options.engine} + {options.source} -> {target}: {size(target.stat().st_size)} in {taken}"
    )
    if said:
        say(said, style="yellow")
    return OK


def _list(engine: Any) -> None:
    """All weights by name, and what can be done with them."""
    missing, refittable = set(engine.missing_weights), engine.refittable_weights
    rows = [
        (name, str(kind), _state(name in missing, name in refittable))
        for name, kind in engine.names.types.items()
    ]
    only = [n for n in engine.frozen if n not in engine.names.types]
    rows += [
        (name, str(refittable.get(name, "")), _frozen_state(name in refittable)) for name in only
    ]
    table(("weight", "type", "state"), rows, left=(0, 1, 2))
    say(f"{len(rows)} weights, {len(missing)} of them missing")


def _frozen_state(is_refittable: bool) -> str:
    how = "with another the graph is made anew" if is_refittable else "build anew to change it"
    return f"read as a shape or number: {how}"


def _state(is_missing: bool, is_refittable: bool) -> str:
    if is_missing:
        return "missing"
    return "there" if is_refittable else "there, cannot be exchanged"
