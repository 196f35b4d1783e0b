"""`whet show`: what became of a model, as text, as a picture and as a page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.cli import models
from whet.cli.parser import a_count, add_model
from whet.cli.status import OK, UsageError
from whet.cli.terminal import amount, count, duration, note, say, size, table, working

if TYPE_CHECKING:
    from whet.ir.graph import Graph
    from whet.runtime.engine import Engine
    from whet.runtime.inspect import Inspection, Kernel

ABOUT = """\
Shows a model at any point of its way: the graph as it was read, after each pass of the optimiser,
or (the default) the kernels that it becomes on this machine and where their results lie in memory.
Nothing is compiled or run, but for --times."""

EXAMPLES = """\
  whet show model.onnx                      the kernels, one to a line
  whet show model.onnx --kernels            what each reads, writes and computes, and its tactic
  whet show model.onnx --kernels --times    and how near each is to the device's limit
  whet show model.onnx --times --json -     all of that as JSON; a name instead of - is a file
  whet show model.onnx --code               what each kernel computes, element by element
  whet show model.onnx --memory             which buffer lies where, and when
  whet show model.onnx --tensors            the names that `whet run --debug` can read out
  whet show model.onnx --after simplify     the graph after a pass; --after list names them
  whet show model.onnx --html model.html    all of it as a page that loads nothing else
  whet show model.onnx --svg model.svg --times"""

RUNS = 20


def add(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser(
        "show", help="what became of a model", about=ABOUT, examples=EXAMPLES
    )
    add_model(parser)
    view = parser.add_mutually_exclusive_group()
    view.add_argument(
        "--kernels", action="store_true", help="each kernel's work, and how it was chosen"
    )
    view.add_argument("--code", action="store_true", help="what each kernel computes")
    view.add_argument("--memory", action="store_true", help="the memory plan")
    view.add_argument("--tensors", action="store_true", help="the tensors by their names")
    view.add_argument(
        "--after",
        metavar="PASS",
        help="the graph after a pass (`import`: as it was read; `list`: which there are)",
    )
    parser.add_argument("--json", metavar="FILE", help="write what the inspector found; - prints")
    parser.add_argument("--html", metavar="FILE", help="write a self-contained page")
    parser.add_argument("--svg", metavar="FILE", help="write a picture")
    parser.add_argument(
        "--times", action="store_true", help="run it, and add what each kernel takes"
    )
    parser.add_argument(
        "--device",
        default="auto",
        help="auto, cpu, a level such as cpu:avx2, cuda; sm90 and its like need not be here",
    )
    parser.add_argument(
        "--threads", type=a_count, help="how many a kernel is chosen for and run on"
    )
    parser.set_defaults(command=run, allow_code=False, input=[], seed=0, cache="default")


def run(options: argparse.Namespace) -> int:
    """Shows the graph or the kernels in the forms asked for."""
    if (options.after or options.tensors) and (options.times or options.json):
        raise UsageError("--times and --json are about kernels: leave --after and --tensors out")
    if options.after == "list":
        return _list_passes()
    if options.after:
        return _show_graph(options)
    engine = models.open_model(options.model)
    if options.tensors:
        return _list_tensors(engine, options)
    found = _inspect(engine, options)
    _write_files(engine, found, options)
    if options.code:
        say(str(found.plan))
    elif options.memory:
        _print_memory(found)
        if found.footprint is not None and models.named_sizes(engine):
            _print_room(engine)
    elif options.kernels:
        _print_work(found)
    elif not (options.html or options.svg or options.json):
        _print_kernels(found)
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
    from whet.cli.draw import diagram, page, svg, table

    graph = graph_after(options.model, options.after)
    picture = diagram.of_graph(graph)
    title = f"{Path(options.model).name} after {options.after}"
    lines = [count(sum(box.kind != "end" for box in picture.boxes.values()), "operator")]
    drawn = svg.draw(picture) if options.svg or options.html else None
    if options.svg and drawn:
        _write(options.svg, svg.stacked([svg.heading(title, lines), drawn]).svg())
    if options.html and drawn:
        rows = table.operators_table(picture)
        _write(options.html, page.page(title, lines, picture, drawn, [], rows, str(graph)))
    if not drawn:
        say(str(graph))
    return OK


def _list_tensors(engine: Engine, options: argparse.Namespace) -> int:
    """The tensors that can be read out of a run, and the node that gives each."""
    source = engine.model()
    if source is None:
        graph = engine.graph
        known = {name: str(v.type) for name, v in zip(graph.output_names, graph.outputs)}
        table(("tensor", "type"), [(n, known.get(n, "")) for n in engine.tensors], left=(0, 1))
        note("this engine knows its outputs and what was marked: whet build --debug NAME")
        return OK
    origins = source.graph.origins
    rows = [
        (name, str(value.type), " + ".join(origins.get(value, ())))
        for name, value in source.tensors.items()
    ]
    late = "behind ranks that only a run can tell"
    rows += [(name, "", late) for name in sorted(source.late)]
    inside = "in a body of control flow: as often as that runs"
    rows += [(name, dtype, inside) for name, dtype in source.inner.items()]
    table(("tensor", "type", "node"), rows, left=(0, 1, 2))
    return OK


def _inspect(engine: Engine, options: argparse.Namespace) -> Inspection:
    """What the inspector finds at the sizes asked for; with --times, in a run."""
    from whet.cli.inputs import given_inputs
    from whet.runtime.ahead import plan_ahead
    from whet.runtime.cache import Cache
    from whet.runtime.devices import compiler_for, open_device
    from whet.runtime.inspect import inspect
    from whet.targets.cpu import host

    if options.times and options.device.startswith("sm"):
        raise UsageError(f"--times runs the model, and {options.device} is no device: say cuda")
    if options.times:
        feeds, _ = given_inputs(engine, options)
        session = models.open_session(engine, options, specialize="eager")
        with working("measuring"):
            found = session.inspect(feeds, RUNS)
        if len(session.plans) > 1:
            note("the run has several stages; pictures show the one that takes longest")
        return found
    sizes = models.chosen_sizes(engine, options)
    threads = options.threads or host.default_threads()
    if options.device.startswith("sm"):  # a GPU that need not be here
        device = compiler_for(options.device)
    else:
        device = open_device(options.device, Cache.default(), None, threads)
    plan = plan_ahead(engine.graph.bind(sizes), device)
    if engine.graph.late is not None or len(plan.graph.values) < 1:
        note("sizes or ranks depend on data: only what is known before a run is shown; see --times")
    return inspect(plan, device, threads)


def _summary(engine: Engine, found: Inspection) -> list[str]:
    weights = sum(_nbytes(kind) for kind in engine.weights.types.values())
    references = sum(kernel.is_reference for kernel in found.kernels)
    is_host = found.device == "cpu"
    threads = f", {count(found.threads, 'thread')}" if is_host else ""
    taken = f", {size(found.footprint.taken)} of the device" if found.footprint else ""
    lines = [
        f"{found.device} {found.architecture}{threads}{taken}",
        f"{size(weights)} of weights, {size(found.arena)} for all results in between, "
        f"{count(references, 'operator')} on NumPy references",
    ]
    if found.seconds is not None:
        lines.append(f"{duration(found.seconds)} in all kernels, the median of {found.runs} runs")
    return lines


def _nbytes(kind: Any) -> int:
    from whet.plan.work import nbytes_at

    return nbytes_at(kind, {})


def _write_files(engine: Engine, found: Inspection, options: argparse.Namespace) -> None:
    """Writes what was asked for."""
    if options.json == "-":
        say(found.to_json().rstrip())
    elif options.json:
        _write(options.json, found.to_json())
    if not (options.svg or options.html):
        return
    from whet.cli.draw.report import Report

    title = f"{Path(options.model).name} as {count(len(found.kernels), 'kernel')}"
    report = Report(found, title, _summary(engine, found))
    if options.svg:
        _write(options.svg, report.svg())
    if options.html:
        _write(options.html, report.html())


def _write(path: str, text: str) -> None:
    from whet.engine.atomic import atomic_write

    with atomic_write(path) as file:
        file.write(text.encode())
    say(f"wrote {path}: {size(len(text.encode()))}")


def _print_kernels(found: Inspection) -> None:
    timed = found.seconds is not None
    rows = [
        (k.number, *([duration(k.seconds or 0.0)] if timed else []), k.title, _gives(k), _nodes(k))
        for k in found.kernels
    ]
    heads = ("", *(["time"] if timed else []), "kernel", "gives", "nodes of the model")
    table(heads, rows, left=(len(heads) - 3, len(heads) - 2, len(heads) - 1))
    _print_sum(found)


def _print_work(found: Inspection) -> None:
    from whet.cli.draw.diagram import tactic_text
    from whet.cli.draw.table import limit_text

    timed = found.seconds is not None
    rows = [
        (
            k.number,
            *([duration(k.seconds or 0.0), limit_text(k)] if timed else []),
            size(k.read),
            size(k.written),
            amount(k.operations),
            k.title,
            tactic_text(k.tactic),
            _nodes(k),
        )
        for k in found.kernels
    ]
    heads = ["", *(["time", "of limit"] if timed else []), "reads", "writes", "operations"]
    heads += ["kernel", "tactic", "nodes of the model"]
    table(heads, rows, left=(len(heads) - 3, len(heads) - 2, len(heads) - 1))
    _print_sum(found)
    if found.limits is not None:
        peaks = found.limits.operations.items()
        flops = ", ".join(f"{amount(most)}FLOP/s in {dtype}" for dtype, most in peaks)
        say(f"limits: {flops}, {amount(found.limits.bytes)}B/s from memory")


def _gives(kernel: Kernel) -> str:
    return ", ".join(buffer.type for buffer in kernel.writes)


def _nodes(kernel: Kernel) -> str:
    return " + ".join(kernel.nodes) or kernel.operator


def _print_sum(found: Inspection) -> None:
    whole = "" if found.seconds is None else f", {duration(found.seconds)} in all"
    say(f"{count(len(found.kernels), 'kernel')}{whole}, arena {size(found.arena)}")
    names = found.reference_ops
    if names:
        said = ", ".join(names[:8]) + (" …" if len(names) > 8 else "")
        say(f"slow: {len(names)} nodes run their NumPy reference: {said}")


def _print_room(engine: Engine) -> None:
    """What a session of a GPU has for runs where their sizes are not known."""
    from whet.targets.cuda.context import EASY_ROOM

    said = "what the greatest sizes of the profile take" if engine.profiles else size(EASY_ROOM)
    say(f"that is for these sizes alone; a session for all sizes begins with {said} for a run")


def _print_memory(found: Inspection) -> None:
    from whet.cli.draw.charts import shared
    from whet.plan.describe import arena_of, buffers
    from whet.plan.plan import nbytes
    from whet.runtime.ahead import needed

    assert found.plan is not None
    held = sorted(buffers(found.plan, found.sizes), key=lambda b: (b.first, b.start))
    rows = [(b.start, size(b.bytes), b.first + 1, b.last + 1, b.title) for b in held]
    table(("address", "size", "from step", "to step", "buffer"), rows, left=(4,))
    say(shared(held, arena_of(found.plan, found.sizes)[0]))
    weights = sum(nbytes(v.tensor) for v in needed(found.plan))
    say(f"prepared weights take {size(weights)}, once for all sessions")
    if (foreseen := found.footprint) is not None:
        say(
            f"{size(foreseen.taken)} of the device: {size(foreseen.weights)} weights, "
            f"{size(foreseen.arena)} for a run, {size(foreseen.staged)} for inputs and outputs on "
            f"the host that find no room there, about {size(foreseen.code)} code, and what rounds "
            "them up to whole pieces"
        )
