"""The command line: `whet build | run | bench | show | check | refit | devices | cache`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from whet.cli import bench, build, cache, check, devices, refit, run, show
from whet.cli.parser import Parser, check_targets
from whet.cli.status import OK, explain

COMMANDS = (build, run, bench, show, check, refit, devices, cache)

ABOUT = """\
whet compiles trained networks: ONNX in, machine code for the CPU or GPU at hand out.

A model file is an ONNX model (model.onnx) or an engine that `whet build` wrote (model.whet);
every command takes either."""

EXAMPLES = """\
  whet devices                              what whet found on this machine, and what is missing
  whet build model.onnx                     optimise once: writes model.whet
  whet run model.whet                       run it on random inputs
  whet run model.whet --input cat.jpg --top 5
  whet bench model.onnx --against onnxruntime
  whet show model.onnx --html model.html    what became of the model, as a page
  whet check model.onnx                     are the results right?"""

STATUS = """\
exit status:
  0  done, and all is well
  1  `whet check` found something wrong, or a reader closed the pipe
  2  wrong use: an option, a file that is not there, inputs that do not fit the model
  3  refused: a model or an engine that is damaged or cannot be read
  4  the machine: no such device, disk full, out of memory, a folder that cannot be written
  70 a defect of whet itself: please report it
  130 interrupted"""


def parser() -> Parser:
    """All commands with their options."""
    whole = Parser(prog="whet", about=ABOUT, examples=EXAMPLES, notes=STATUS)
    whole.add_argument("--version", action="version", version=f"whet {version()}")
    commands = whole.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)
    for command in COMMANDS:
        command.add(commands)
    return whole


def version() -> str:
    """The installed version of whet."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("whet")
    except PackageNotFoundError:
        return "of a source folder"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status; messages go to standard error."""
    whole = parser()
    options = whole.parse_args(arguments)
    if not hasattr(options, "command"):
        whole.print_help()
        return OK
    try:
        check_targets(options)
        status = int(options.command(options))
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # `whet show | head` ends here; what is left to print must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Exception, KeyboardInterrupt) as error:
        return explain(error, getattr(options, "guessed", None))
