"""`whet run`: a model on arrays, pictures or random inputs."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from whet.cli import models
from whet.cli.inputs import given_inputs
from whet.cli.parser import a_count, add_device, add_inputs, add_model
from whet.cli.status import OK, UsageError
from whet.cli.terminal import duration, note, say, size, table, working
from whet.cli.timeline import add_trace, write_trace

ABOUT = "Runs a model once and says what came out."

EXAMPLES = """\
  whet run model.onnx                                    on random inputs
  whet run model.onnx --size batch=4 --seed 7
  whet run model.whet --input x.npy --output results.npz
  whet run model.whet --input ids=a.npy --input mask=b.npy
  whet run model.onnx --debug /layer1/add --debug /layer2/relu -o inside.npz
  whet run model.onnx --trace run.json                   when each kernel ran, for Perfetto
  whet run resnet.onnx --input cat.jpg --imagenet --top 5 --labels names.txt"""


def add(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser(
        "run", help="run a model and show its outputs", about=ABOUT, examples=EXAMPLES
    )
    add_model(parser)
    parser.add_argument("-o", "--output", metavar="FILE", help="save the outputs as .npz")
    parser.add_argument("--top", metavar="K", type=a_count, help="the K largest of each row")
    parser.add_argument("--labels", metavar="FILE", help="names for --top, one to a line")
    parser.add_argument(
        "--debug",
        metavar="NAME",
        action="append",
        default=[],
        help="read out a tensor inside the model, too (`whet show MODEL --tensors` names them); "
        "may be repeated",
    )
    add_trace(parser)
    add_inputs(parser)
    add_device(parser)
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Opens, compiles, runs and reports."""
    labels = _labels(options.labels)
    engine = models.open_model(options.model, options.allow_code)
    arrays, origin = given_inputs(engine, options)
    start = time.perf_counter()
    session = models.open_session(engine, options)
    with working("running"):  # sizes that are open are compiled for now
        outputs = session.run(arrays)
    ready = time.perf_counter()
    session.run(arrays)
    taken = time.perf_counter() - ready
    note(f"inputs: {origin}; ready after {duration(ready - start)}, a run takes {duration(taken)}")
    if session.reference_ops:
        names = ", ".join(session.reference_ops[:5])
        note(f"slow: {len(session.reference_ops)} nodes run their NumPy reference: {names}")
    if options.debug:
        with working("reading out"):
            outputs = {**outputs, **_each(session.debug(arrays, options.debug))}
    _summarise(outputs)
    for name, array in outputs.items():
        if options.top:
            _show_top(name, array, options.top, labels)
    if options.output:
        save(options.output, outputs)
        say(f"saved to {options.output}: {size(Path(options.output).stat().st_size)}")
    if options.trace:
        write_trace(options, arrays)
    return OK


def _each(tensors: dict[str, Any]) -> dict[str, Any]:
    """Tensors by name; those in bodies that ran several times with the number of each time."""
    found: dict[str, Any] = {}
    for name, value in tensors.items():
        parts = {f"{name}[{i}]": x for i, x in enumerate(value)} if isinstance(value, list) else {}
        found.update(parts or {name: value})
    return found


def save(path: str, outputs: dict[str, Any]) -> None:
    """The outputs as .npz; the file appears whole or not at all."""
    from whet.engine.atomic import atomic_write

    arrays = {}
    for name, array in outputs.items():
        if not isinstance(array, np.ndarray):
            raise UsageError(f"output {name!r} is no tensor, and .npz holds only tensors")
        arrays[name] = array.astype(str) if array.dtype == object else array
    with atomic_write(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _labels(path: str | None) -> list[str]:
    if path is None:
        return []
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UsageError(
            f"--labels {path}: the file is no text; one name to a line is needed"
        ) from None


def _summarise(outputs: dict[str, Any]) -> None:
    heads = ("output", "type", "least", "mean", "greatest", "not finite", "first elements")
    table(heads, [_row(name, x) for name, x in outputs.items()], left=(0, 1, 6))


def _row(name: str, x: Any) -> tuple[str, ...]:
    if not isinstance(x, np.ndarray):
        count = f"{len(x)} elements" if isinstance(x, list) else "nothing" if x is None else str(x)
        return name, type(x).__name__, "", "", "", "", count
    kind = f"{'string' if x.dtype == object else x.dtype}[{','.join(map(str, x.shape))}]"
    first = " ".join(_element(e) for e in x.ravel()[:5])
    if x.dtype == object or x.dtype.kind == "c" or not x.size:
        return name, kind, "", "", "", "", first
    wide = x.astype(np.float64)
    finite = wide[np.isfinite(wide)]
    odd = x.size - finite.size
    if not finite.size:
        return name, kind, "", "", "", str(odd), first
    values = (_element(v) for v in (finite.min(), finite.mean(), finite.max()))
    return (name, kind, *values, str(odd or ""), first)


def _element(x: Any) -> str:
    return (
        str(x)
        if isinstance(x, str | bool | np.bool_ | np.integer)
        else f"{complex(x):.4g}"
        if (isinstance(x, complex | np.complexfloating))
        else f"{float(x):.4g}"
    )


def _show_top(name: str, array: Any, count: int, labels: list[str]) -> None:
    """The places of the largest elements of each row, largest first."""
    if not isinstance(array, np.ndarray) or array.ndim == 0 or array.dtype == object:
        note(f"{name}: --top needs a tensor of numbers with an axis")
        return
    rows = np.asarray(array, np.float64).reshape(-1, array.shape[-1])
    for number, row in enumerate(rows[:16]):
        order = np.argsort(-row, kind="stable")[:count]
        found = [(int(i), labels[i] if i < len(labels) else "", f"{row[i]:.4g}") for i in order]
        say(f"{name}[{number}]" if len(rows) > 1 else name, style="bold")
        table(("place", "label", "value"), found, left=(1,))
    if len(rows) > 16:
        note(f"{len(rows) - 16} more rows are not shown")
