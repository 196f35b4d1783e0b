"""Refit then run is build then run, bit for bit, for each weight by itself.

`python -m tests.soak.refit [MODEL.onnx or FOLDER…] [--weights N] [--frozen N] [--seed N]`

Without a model, the small ones of the tests. A folder is searched for .onnx files; beside a model,
`io.json` names its inputs (see benchmarks/real_models.py), which are random otherwise. `--weights`
takes so many of each model's, chosen at random, instead of all, and `--frozen` so many of those
that the graph itself is made of: shapes and numbers.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

import whet
from whet.cli.inputs import random_inputs
from whet.cli.models import named_sizes
from whet.frontends.onnx.model import Tensor
from whet.frontends.onnx.records import map_records
from whet.ir.types import FLOATS
from whet.runtime.cache import Cache
from whet.runtime.debug import Source, source_in, source_of

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Result:
    """How many weights were tried, how many of them change the outputs, and which went wrong."""

    tried: int = 0
    effective: int = 0
    wrong: list[str] = field(default_factory=list)


def changed(array: np.ndarray, dtype: str, rng: np.random.Generator) -> np.ndarray:
    """Other elements: near the old ones, or where a row could be an index, in another order."""
    if dtype in FLOATS:
        factor = rng.uniform(0.8, 1.25, array.shape)
        return np.asarray(array.astype(np.float64) * factor).astype(array.dtype)
    return array[::-1].copy() if array.size > 1 else np.asarray(array ^ 1)


def built(source: Source, name: str, array: np.ndarray) -> whet.Engine:
    """The engine of the model with another weight, from the start."""

    def other(where: str, tensor: Tensor) -> Tensor:
        return replace(tensor, read=lambda: array) if tensor.name == name else tensor

    read = source_in(map_records(source.model, other))
    with patch("whet.runtime.build.source_of", lambda model: read):
        return whet.build("")


def inputs_of(engine: whet.Engine, model: Path | None) -> dict[str, Any]:
    """The inputs kept beside the model, or random ones."""
    if model is not None and (model.parent / "io.json").exists():
        files = json.loads((model.parent / "io.json").read_text())["inputs"]
        loaded = {name: np.load(model.parent / file) for name, file in files.items()}
        return {n: x if isinstance(x, np.ndarray) else x["array"] for n, x in loaded.items()}
    return random_inputs(engine, dict.fromkeys(named_sizes(engine), 2), 0)


def same(a: Any, b: Any) -> bool:
    """Whether two outputs, which may be lists of arrays, have the same bits."""
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    x, y = np.asarray(a), np.asarray(b)
    if x.dtype == object:
        return bool(np.array_equal(x, y))
    return x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()


def same_all(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two runs gave the same."""
    return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)


def outcome(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The outputs, or the error: some weights are indices or shapes, which the others must suit."""
    try:
        return run()
    except whet.Error as error:
        return {"error": np.array(f"{type(error).__name__}: {error}", object)}


def chosen(
    engine: whet.Engine, weights: int | None, frozen: int | None, rng: np.random.Generator
) -> list[str]:
    """So many weights, and so many of those that the graph itself is made of; None for all."""
    free = list(engine.names.free)
    others = [name for name in engine.refittable_weights if name not in engine.names.free]
    found: list[str] = rng.permutation(free)[:weights].tolist()
    found += rng.permutation(others)[:frozen].tolist()
    return found


def check(
    model: Any, cache: Cache, weights: int | None = None, seed: int = 0, frozen: int | None = None
) -> Result:
    """Exchanges weights of one model, each by itself and then back."""
    source, imported = source_of(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.whet")
        whet.build(model).save(path)
        engine = whet.load(path)  # it gives pages of weights back, and reads them again

    feeds = inputs_of(engine, Path(model) if isinstance(model, str | Path) else None)
    # Kernels made for sizes that come back may add in another order.
    options: dict[str, Any] = {"device": "cpu", "cache": cache, "specialize": "none"}
    session = engine.session(**options)
    before, result = session.run(feeds), Result()
    rng = np.random.default_rng(seed)

    def refitted(name: str, array: np.ndarray) -> dict[str, Any]:
        engine.refit({name: array})
        return session.run(feeds)

    def anew(name: str, array: np.ndarray) -> dict[str, Any]:
        found: dict[str, Any] = built(source, name, array).session(**options).run(feeds)
        return found

    for name in chosen(engine, weights, frozen, rng):
        old = imported.weights[name].read()
        new = changed(old, imported.weights[name].type.dtype, rng)
        after = outcome(partial(refitted, name, new))
        expected = outcome(partial(anew, name, new))
        result.tried += 1
        result.effective += not same_all(after, before)
        if not same_all(after, expected):
            result.wrong.append(name)
        engine.refit({name: old})
    if not same_all(outcome(lambda: session.run(feeds)), before):
        result.wrong.append("(all weights as they were)")
    return result


def small_models() -> Iterator[tuple[str, Any]]:
    """Those of the tests and the examples."""
    from tests.runtime.models import MODELS

    yield from ((name, make()) for name, make in MODELS.items())
    yield "digits", ROOT / "examples" / "digits" / "network.onnx"


def given_models(places: list[Path]) -> Iterator[tuple[str, Any]]:
    for place in places:
        found = sorted(place.rglob("*.onnx")) if place.is_dir() else [place]
        yield from ((f"{path.parent.name}/{path.name}", path) for path in found)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--weights", type=int)
    parser.add_argument("--frozen", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o700)
        for name, model in given_models(options.models) if options.models else small_models():
            start = time.monotonic()
            counts = options.weights, options.seed, options.frozen
            result = check(model, Cache(folder), *counts)
            verdict = f"DIFFERS: {', '.join(result.wrong)}" if result.wrong else "same bits"
            print(
                f"{name:40} {result.tried:4} weights, {result.effective:4} change the outputs, "
                f"{time.monotonic() - start:6.1f} s  {verdict}",
                flush=True,
            )
            failed += bool(result.wrong)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
