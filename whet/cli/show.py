"""`whet show`: what became of a model, as text, as a picture and as a page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.cli import models
from whet.cli.parser import add_model
from whet.cli.status import OK, UsageError
from whet.cli.terminal import duration, note, say, size, table

if TYPE_CHECKING:
    from whet.ir.graph import Graph
    from whet.plan.plan import Plan
    from whet.runtime.engine import Engine

ABOUT = """\
Shows a model at any point of its way: the graph as it was read, after each pass of the optimiser,
or (the default) the kernels that it becomes on this machine and where their results lie in memory.
Nothing is compiled or run, but for --times."""

EXAMPLES = """\
  whet show model.onnx                      the kernels, one to a line
  whet show model.onnx --code               with what each computes
  whet show model.onnx --memory             which buffer lies where, and when
  whet show model.onnx --after simplify     the graph after a pass; --after list names them
  whet show model.onnx --html model.html    all of it as a page that loads nothing else
  whet show model.onnx --svg model.svg --times"""


def add(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser(
        "show", help="what became of a model", about=ABOUT, examples=EXAMPLES
    )
    add_model(parser)
    parser.add_argument(
        "--after",
        metavar="PASS",
        help="the graph after a pass (`import`: as it was read; `list`: which there are)",
    )
    parser.add_argument("--code", action="store_true", help="what each kernel computes")
    parser.add_argument("--memory", action="store_true", help="the memory plan")
    parser.add_argument("--html", metavar="FILE", help="write a self-contained page")
    parser.add_argument("--svg", metavar="FILE", help="write a picture")
    parser.add_argument(
        "--times", action="store_true", help="run it, and add what each kernel takes"
    )
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, a level such as cpu:avx2, cuda"
    )
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    parser.set_defaults(command=run, allow_code=False, input=[], seed=0, cache="default")


def run(options: argparse.Namespace) -> int:
    """Shows the graph or the plan in the forms asked for."""
    if options.after == "list":
        return _list_passes()
    if options.after:
        return _show_graph(options)
    engine = models.open_model(options.model)
    plan, seconds = _plan(engine, options)
    from whet.cli.draw import diagram

    title = f"{Path(options.model).name} as {len(plan.steps)} kernels"
    _pictures(options, title, _summary(engine, plan, seconds), diagram.of_plan(plan, seconds), plan)
    if options.code:
        say(str(plan))
    elif options.memory:
        _print_memory(plan)
    elif not (options.html or options.svg):
        _print_kernels(plan, seconds)
    return OK


def _list_passes() -> int:
    from whet.passes.pipeline import PASSES

    rows = [(name, _about(run)) for name, run in zip(models.pass_names(), PASSES)]
    table(("pass", "what it does"), [("import", "The graph as it was read."), *rows], left=(0, 1))
    return OK


def _about(run: Any) -> str:
    return (run.__doc__ or "").strip().partition("\n")[0]


def graph_after(model: str, wanted: str) -> Graph:
    """The graph of a model after a pass."""
    from whet.frontends.onnx import from_onnx

    if models.is_engine(model):
        raise UsageError(f"{model} is an engine: its passes have run; --after takes the ONNX model")
    if wanted == "import":
        return from_onnx(model).graph
    names = models.pass_names()
    if wanted not in names:
        raise UsageError(f"--after {wanted}: there is no such pass; one of {', '.join(names)}")
    return dict(models.stages(model))[wanted]


def _show_graph(options: argparse.Namespace) -> int:
    from whet.cli.draw import diagram

    graph = graph_after(options.model, options.after)
    picture = diagram.of_graph(graph)
    title = f"{Path(options.model).name} after {options.after}"
    operators = sum(box.kind != "end" for box in picture.boxes.values())
    _pictures(options, title, [f"{operators} operators"], picture, None, str(graph))
    if not (options.html or options.svg):
        say(str(graph))
    return OK


def _plan(engine: Engine, options: argparse.Namespace) -> tuple[Plan, list[float] | None]:
    """The plan at the sizes asked for, and the seconds of each step where they are wanted."""
    from whet.runtime.cache import Cache
    from whet.runtime.engine import open_device
    from whet.runtime.program import plan_ahead
    from whet.targets.cpu import host

    if options.times:
        return _timed(engine, options)
    sizes = models.chosen_sizes(engine, options)
    device = open_device(options.device, Cache.default(), None, host.default_threads())
    plan = plan_ahead(engine.graph.bind(sizes), device)
    if engine.graph.late is not None or len(plan.graph.values) < 1:
        note("sizes or ranks depend on data: only what is known before a run is shown; see --times")
    return plan, None


def _timed(engine: Engine, options: argparse.Namespace) -> tuple[Plan, list[float]]:
    """The plan that took longest of those that a run needs, with the median times of its steps."""
    import numpy as np

    from whet.cli.inputs import given_inputs

    feeds, _ = given_inputs(engine, options)
    session = models.open_session(engine, options)
    for _ in range(3):
        session.run(feeds)
    traces = [session.trace(feeds).steps for _ in range(20)]
    taken = dict(
        zip((step for step, _ in traces[0]), np.median([[t for _, t in s] for s in traces], 0))
    )
    times = {plan: [float(taken.get(step, 0.0)) for step in plan.steps] for plan in session.plans}
    longest = max(times, key=lambda plan: sum(times[plan]))
    if len(times) > 1:
        note(f"the run has {len(times)} stages; the one that takes longest is shown")
    return longest, times[longest]


def _summary(engine: Engine, plan: Plan, seconds: Sequence[float] | None) -> list[str]:
    from whet.plan.plan import nbytes

    weights = sum(nbytes(kind) for kind in engine.weights.types.values())
    references = len([step for step in plan.steps if step.is_host])
    lines = [
        f"{size(weights)} of weights, {size(plan.arena)} for all results in between, "
        f"{references or 'no'} operators on their NumPy reference"
    ]
    if seconds is not None:
        lines.append(f"{duration(sum(seconds))} in all kernels, the median of 20 runs")
    return lines


def _pictures(
    options: argparse.Namespace,
    title: str,
    lines: Sequence[str],
    picture: Any,
    plan: Plan | None,
    text: str = "",
) -> None:
    """Writes the files that were asked for."""
    from whet.cli.draw import page, svg
    from whet.plan.describe import buffers

    if not (options.html or options.svg):
        return
    drawn, held = svg.draw(picture), None
    if plan is not None:
        width = max(drawn.width, 800.0)
        held = svg.memory(buffers(plan), plan.arena, len(plan.steps), width)
    if options.svg:
        parts = [svg.heading(title, lines), drawn, *([held] if held else [])]
        _write(options.svg, svg.stacked(parts).svg())
    if options.html:
        _write(options.html, page.page(title, lines, picture, drawn, held, text or str(plan)))


def _write(path: str, text: str) -> None:
    from whet.engine.atomic import atomic_write

    with atomic_write(path) as file:
        file.write(text.encode())
    say(f"wrote {path}: {size(len(text.encode()))}")


def _print_kernels(plan: Plan, seconds: Sequence[float] | None) -> None:
    from whet.plan.describe import title_of

    rows = []
    for number, step in enumerate(plan.steps):
        types = ", ".join(str(value.type) for value in step.writes)
        nodes = " + ".join(step.nodes) or str(step.value.op)
        taken = [duration(seconds[number])] if seconds is not None else []
        rows.append((number + 1, *taken, title_of(step), types, nodes))
    heads = (
        "",
        *(["time"] if seconds is not None else []),
        "kernel",
        "gives",
        "nodes of the model",
    )
    table(heads, rows, left=(len(heads) - 3, len(heads) - 2, len(heads) - 1))
    hosts = sum(step.is_host for step in plan.steps)
    whole = f", {duration(sum(seconds))} in all" if seconds is not None else ""
    say(f"{len(plan.steps)} kernels{whole}, arena {size(plan.arena)}")
    if hosts:
        say(f"slow: {hosts} of them run their NumPy reference: {', '.join(plan.reference_ops)}")


def _print_memory(plan: Plan) -> None:
    from whet.plan.describe import buffers

    found = sorted(buffers(plan), key=lambda b: (b.first, b.start))
    rows = [(b.start, size(b.bytes), b.first + 1, b.last + 1, b.title) for b in found]
    table(("address", "size", "from step", "to step", "buffer"), rows, left=(4,))
    alone = size(sum(b.bytes for b in found))
    say(f"{len(found)} buffers share {size(plan.arena)}; each for itself they would take {alone}")
