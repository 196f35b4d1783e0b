"""`whet check`: are the results right, and if not, where do they go wrong?"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from whet.cli import models
from whet.cli.inputs import given_inputs, random_inputs
from whet.cli.judge import Finding, compare
from whet.cli.parser import a_count, a_difference, add_device, add_inputs, add_model
from whet.cli.status import DIFFERS, OK, UsageError
from whet.cli.terminal import note, say, size, table, working

if TYPE_CHECKING:
    from whet.runtime.engine import Engine

ABOUT = """\
Compares a model's outputs with those of ONNX Runtime where it is installed, else with whet's own
NumPy reference, which computes operator by operator. A difference is the largest one of an output
over its largest element."""

EXAMPLES = """\
  whet check model.onnx                          on three random inputs
  whet check model.onnx --input x.npy --tolerance 1e-4
  whet check model.onnx --against reference --device cpu:avx2
  whet check model.onnx --per-layer              names the first tensor that differs
  whet check model.whet --file                   every byte of an engine file, nothing is run"""

Judge = Callable[[dict[str, Any]], Mapping[str, Any]]


def add(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser(
        "check", help="compare with ONNX Runtime or NumPy", about=ABOUT, examples=EXAMPLES
    )
    add_model(parser)
    parser.add_argument(
        "--against",
        choices=("auto", "onnxruntime", "reference"),
        default="auto",
        help="what the outputs are compared with",
    )
    parser.add_argument(
        "--tolerance",
        metavar="X",
        type=a_difference,
        help="the largest difference allowed (1e-3 for float32)",
    )
    parser.add_argument(
        "--runs", metavar="N", type=a_count, default=3, help="random inputs to try (3)"
    )
    parser.add_argument(
        "--per-layer",
        action="store_true",
        help="compare each kernel's results with NumPy, and each pass of the optimiser",
    )
    parser.add_argument(
        "--file", action="store_true", help="verify an engine file, down to its last byte"
    )
    add_inputs(parser)
    add_device(parser)
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Compares and reports; 1 where something differs."""
    if options.file:
        if options.per_layer:
            raise UsageError("--file runs nothing: leave --per-layer out")
        return check_file(options.model, options.device)
    engine = models.open_model(options.model, options.allow_code)
    feeds = _feeds(engine, options)
    name, judge = judge_of(engine, options)
    session = models.open_session(engine, options)
    worst: dict[str, Finding] = {}
    with working(f"comparing with {name}") as work:
        for number, inputs in enumerate(feeds):
            work.step(number, len(feeds))
            for finding in compare(session.run(inputs), judge(inputs), options.tolerance):
                before = worst.get(finding.name)
                if before is None or finding.difference > before.difference:
                    worst[finding.name] = finding
    _report(list(worst.values()), name, len(feeds))
    is_right = all(finding.is_right for finding in worst.values())
    if options.per_layer:
        from whet.cli.layers import per_layer

        is_right = per_layer(engine, session, feeds[0], options) and is_right
    elif not is_right:
        note("find where with --per-layer")
    return OK if is_right else DIFFERS


def check_file(path: str, device: str) -> int:
    """Reads every byte of an engine, and says what was found."""
    from whet.runtime.engine import engine_validity

    if not models.is_engine(path):
        raise UsageError(f"--file verifies engines; {path} is none: its first bytes are others")
    with working("reading every byte"):
        found = engine_validity(path, device)
    for finding in found.findings:
        style = "bold red" if finding.is_fatal else "yellow"
        say(f"{finding.kind}: {finding.reason}", style=style)
    if found.is_valid:
        say(f"{path}: {size(Path(path).stat().st_size)}, every checksum and type is right")
    return OK if found.is_valid else DIFFERS


def _feeds(engine: Engine, options: argparse.Namespace) -> list[dict[str, Any]]:
    first, origin = given_inputs(engine, options)
    note(f"inputs: {origin}")
    if options.input:
        return [first]
    sizes = {**dict.fromkeys(models.named_sizes(engine), 1), **models.profile_sizes(engine)}
    sizes.update({name: likely for name, (_, likely, _) in options.size})
    seeds = range(options.seed + 1, options.seed + options.runs)
    return [first, *(random_inputs(engine, sizes, seed) for seed in seeds)]


def judge_of(engine: Engine, options: argparse.Namespace) -> tuple[str, Judge]:
    """What outputs are compared with, and its name."""
    wanted, is_engine = options.against, models.is_engine(options.model)
    has_runtime = find_spec("onnxruntime") is not None
    if wanted == "onnxruntime" and is_engine:
        raise UsageError("--against onnxruntime: ONNX Runtime reads no engine; give the ONNX model")
    if wanted == "onnxruntime" and not has_runtime:
        raise UsageError("--against onnxruntime: it is not installed; `pip install onnxruntime`")
    if wanted == "reference" or is_engine or not has_runtime:
        return "the NumPy reference", reference_judge(options.model, engine)
    try:
        return "ONNX Runtime", onnxruntime_judge(options.model, engine)
    except Exception as error:
        # It refuses some models that whet reads; any exception is its own.
        if wanted == "onnxruntime":
            raise UsageError(f"ONNX Runtime does not open {options.model}: {error}") from None
        note(f"ONNX Runtime does not open the model ({_first_line(error)}): NumPy judges")
        return "the NumPy reference", reference_judge(options.model, engine)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:120]


def reference_judge(model: str, engine: Engine) -> Judge:
    """The graph as the model states it, operator by operator; an engine's graph for an engine."""
    from whet.frontends.onnx import from_onnx
    from whet.ir.evaluate import evaluate

    graph, weights = engine.graph, engine.weights.array
    if not models.is_engine(model):
        imported = from_onnx(model)
        graph, stored = imported.graph, imported.weights
        weights = lambda name: stored[name].read()  # noqa: E731
    names = graph.late.outputs if graph.late is not None else graph.output_names

    def judge(inputs: dict[str, Any]) -> dict[str, Any]:
        given = {value: inputs[value.op.name] for value in graph.inputs}  # type: ignore[attr-defined]
        return dict(zip(names, evaluate(graph, given, weights)))

    return judge


def onnxruntime_judge(model: str, engine: Engine) -> Judge:
    """ONNX Runtime with its own optimiser off, so that it computes what the model states."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def judge(inputs: dict[str, Any]) -> dict[str, Any]:
        values = session.run(None, {name: _ort_value(x) for name, x in inputs.items()})
        return dict(zip(names, values))

    return judge


def _ort_value(x: Any) -> Any:
    """Types that NumPy lacks cross ONNX Runtime's interface as bits with a type's name."""
    if not isinstance(x, np.ndarray) or x.dtype.type.__module__ != "ml_dtypes":
        return x
    import onnx
    import onnxruntime

    bits = x.view(np.uint16 if x.dtype.itemsize == 2 else np.uint8)
    kind = onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, kind)


def _report(findings: list[Finding], judge: str, runs: int) -> None:
    rows = [
        (f.name, f.type, f"{f.difference:.1e}", f"{f.tolerance:.0e}", _verdict(f)) for f in findings
    ]
    table(("output", "type", "difference", "allowed", "verdict"), rows, left=(0, 1, 4))
    wrong = sum(not f.is_right for f in findings)
    said = f"{wrong} of {len(findings)} outputs differ" if wrong else "all outputs are right"
    say(
        f"{said}: {judge}, {runs} input{'s' if runs > 1 else ''}", style="red" if wrong else "green"
    )


def _verdict(finding: Finding) -> str:
    return "right" if finding.is_right else "DIFFERS"
