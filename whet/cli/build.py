"""`whet build`: a model to an engine file."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from whet.cli import models
from whet.cli.parser import a_size, names
from whet.cli.status import OK, UsageError
from whet.cli.terminal import duration, facts, say, size, working

ABOUT = """\
Reads an ONNX model, optimises its graph and writes one portable engine file.
No device is touched: the engine runs on any machine, which compiles it when it first starts."""

EXAMPLES = """\
  whet build model.onnx                          writes model.whet
  whet build model.onnx -o /srv/m.whet
  whet build model.onnx --size batch=1:8:32      least, likely and greatest batch
  whet build model.onnx --architectures avx2,avx512+vnni
                                                 machine code for these goes into the file too
  whet build model.onnx --architectures sm80,sm90,sm120
                                                 the same for GPUs; none has to be here
  whet build model.onnx --precision float16      faster on a GPU; sums stay float32
  whet build model.onnx --strip                  without weights: see `whet refit`"""


def add(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser(
        "build", help="optimise a model into an engine file", about=ABOUT, examples=EXAMPLES
    )
    parser.add_argument("model", metavar="MODEL", help="an ONNX model")
    parser.add_argument("-o", "--output", metavar="FILE", help="the engine (MODEL's name + .whet)")
    parser.add_argument(
        "--size",
        metavar="NAME=LOW:LIKELY:HIGH",
        type=a_size,
        action="append",
        default=[],
        help="the range of a named size of the inputs; one number fixes it",
    )
    parser.add_argument(
        "--architectures",
        metavar="LIST",
        type=names,
        default=[],
        help="compile for these now and keep the code in the engine (load it with --allow-code); "
        "current is the GPU at hand, or else the processor",
    )
    parser.add_argument(
        "--precision",
        metavar="DTYPE",
        help="float16 or bfloat16: do float32 work in it where that gains and is safe",
    )
    parser.add_argument(
        "--not-refittable",
        dest="refittable",
        action="store_false",
        help="fold weights by value and keep only the results; they cannot be exchanged later",
    )
    parser.add_argument(
        "--strip",
        action="store_true",
        help="leave the weights out; `whet refit` gives them back, from MODEL or another",
    )
    parser.add_argument(
        "--debug",
        metavar="NAME",
        action="append",
        default=[],
        help="with --not-refittable: keep a tensor inside the model readable (`whet run --debug`)",
    )
    parser.set_defaults(command=build)


def build(options: argparse.Namespace) -> int:
    """Builds, saves, and says how large it became and how long it took."""
    source = Path(options.model)
    target = Path(options.output) if options.output else source.with_suffix(".whet")
    if models.is_engine(source):
        raise UsageError(f"{source} is an engine already; build takes the ONNX model")
    if target.exists() and target.resolve() == source.resolve():
        raise UsageError(f"{target} is the model itself; name another file with -o")
    if options.strip and not options.refittable:
        raise UsageError("--strip and --not-refittable: such an engine could never get its weights")
    from whet.runtime.build import with_kernels

    start = time.perf_counter()
    engine = models.open_model(
        source,
        refittable=options.refittable,
        precision=options.precision,
        debug=options.debug,
    )
    if options.size:
        engine = _with_profile(engine, dict(options.size))
    with working("compiling"):
        engine = with_kernels(engine, options.architectures)
    with working(f"writing {target.name}"):
        engine.save(target, strip=options.strip)
    taken = time.perf_counter() - start
    say(f"{source} -> {target}: {size(target.stat().st_size)} in {duration(taken)}")
    facts(
        [
            *(("input", f"{name}: {kind}") for name, kind in engine.inputs.items()),
            *(("output", f"{name}: {kind}") for name, kind in engine.outputs.items()),
            *((("kernels", f"{len(engine.kernels)} compiled"),) if engine.kernels else ()),
            *(("debug", name) for name in engine.debug),
        ]
    )
    return OK


def _with_profile(engine: Any, ranges: dict[str, tuple[int, int, int]]) -> Any:
    """The engine with one profile made of ranges of named sizes."""
    from dataclasses import replace

    from whet.runtime.profile import Profile

    open_sizes = models.named_sizes(engine)
    models.check_names(ranges, open_sizes)
    missing = [name for name in open_sizes if name not in ranges]
    if missing:
        raise UsageError(f"give a range for {', '.join(missing)} too: --size {missing[0]}=1:4:16")
    shapes = [
        {
            name: models.shape_at(kind, {n: r[which] for n, r in ranges.items()})
            for name, kind in engine.inputs.items()
        }
        for which in range(3)
    ]
    return replace(engine, profiles=(Profile(*shapes),))
