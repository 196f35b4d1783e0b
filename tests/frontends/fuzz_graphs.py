"""Draws random graphs and runs them: `python -m tests.frontends.fuzz_graphs --count 1000`.

Every graph goes through the reader and the references, then through the optimiser, the kernels and
the runtime. What differs from ONNX Runtime, or raises anything, is written to a folder as the
smallest part of the model that shows it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import whet
from tests.frontends.drawing import BINDINGS, Model, Tensor
from tests.frontends.random_graphs import differences, drawn, outputs_of
from tests.soak.refit import changed
from whet.frontends.onnx import from_onnx
from whet.ir.evaluate import evaluate

DEVICES = ("cpu", "cpu", "cpu:avx2", "cpu:sse2")


def by_references(model: Model, outputs: Sequence[Tensor]) -> Iterator[str]:
    """What the operators' references make otherwise than ONNX Runtime."""
    proto = model.proto(outputs)
    imported = from_onnx(proto)
    names = [o.name for o in proto.graph.output]
    for binding in range(len(BINDINGS)):
        feeds = model.feeds(binding, proto)
        given = {v: feeds[v.op.name] for v in imported.graph.inputs}  # type: ignore[attr-defined]
        results = evaluate(imported.graph, given, lambda name: imported.weights[name].read())
        yield from differences(dict(zip(names, results)), outputs, binding)


def by_kernels(model: Model, outputs: Sequence[Tensor], seed: int) -> Iterator[str]:
    """What a session makes otherwise, on a machine and with settings that the seed says."""
    rng = np.random.default_rng(seed)
    proto = model.proto(outputs)
    engine = whet.build(proto, refittable=bool(rng.integers(3)))
    if rng.integers(2):
        engine = through_file(engine)
    session = engine.session(
        DEVICES[rng.integers(len(DEVICES))],
        threads=int(rng.integers(1, 3)),
        specialize=("none", "lazy", "eager")[rng.integers(3)],
    )
    for binding in (*range(len(BINDINGS)), 0):
        if engine.refittable_weights and not rng.integers(3):
            there_and_back(engine, session, model.feeds(binding, proto), rng)
        results = session.run(model.feeds(binding, proto))
        yield from (
            f"{line} (binding {binding})" for line in differences(results, outputs, binding)
        )


def there_and_back(
    engine: whet.Engine, session: whet.Session, feeds: dict[str, Any], rng: np.random.Generator
) -> None:
    """Gives an engine another weight, whatever becomes of it, and then the one it had."""
    name = str(rng.choice(sorted(engine.refittable_weights)))
    old, kind = engine.weights.array(name).copy(), engine.weights.types[name]
    with suppress(whet.Error):
        engine.refit({name: changed(old, kind.dtype, rng)})
        session.run(feeds)
    engine.refit({name: old})


def through_file(engine: whet.Engine) -> whet.Engine:
    """The engine, written and read again."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "drawn.whet"
        engine.save(path)
        return whet.load(path.read_bytes())


def problems(model: Model, outputs: Sequence[Tensor], seed: int) -> list[str]:
    """What is wrong, in a line each; an exception is wrong too, where it is not expected."""
    try:
        wrong = list(by_references(model, outputs))
        return [f"reference: {line}" for line in wrong] or list(by_kernels(model, outputs, seed))
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]


def smallest(model: Model, seed: int) -> tuple[list[Tensor], list[str]] | None:
    """The first tensor that is wrong when it is the only output."""
    for tensor in model.made:
        wrong = problems(model, [tensor], seed)
        if wrong:
            return [tensor], wrong
    return None


def examine(seed: int, count: int) -> tuple[onnx.ModelProto, list[str]] | None:
    """The part of a drawn model that goes wrong, and how; None where all is right."""
    model = drawn(seed, count)
    outputs = outputs_of(model, seed)
    wrong = problems(model, outputs, seed)
    if not wrong:
        return None
    outputs, wrong = smallest(model, seed) or (outputs, wrong)
    return model.proto(outputs), wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="graphs")
    parser.add_argument("--nodes", type=int, default=14, help="of each")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the first")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--folder", type=Path, default=Path("graph-findings"))
    options = parser.parse_args()
    end, found, done = time.monotonic() + options.seconds, 0, 0
    for seed in range(options.seed, options.seed + options.count):
        if time.monotonic() > end:
            break
        done += 1
        finding = examine(seed, options.nodes)
        if finding:
            found += 1
            options.folder.mkdir(parents=True, exist_ok=True)
            onnx.save(finding[0], options.folder / f"{seed}.onnx")
            print(f"{seed}: {finding[1][0][:300]}", flush=True)
    print(f"{found} of {done} graphs from seed {options.seed} on are wrong")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
