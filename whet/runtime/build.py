"""Building engines from models, with no device."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from whet.engine.file import is_engine, weight_names
from whet.engine.fold import fold_by_value
from whet.engine.refit import digest, stored
from whet.engine.weights import ImportedWeights, WeightStore
from whet.errors import InvalidModel, RefitError
from whet.ir.evaluate import bind_shape
from whet.ir.graph import Graph
from whet.ir.types import TensorType
from whet.knobs import knobs
from whet.passes.fold import fold_constants
from whet.passes.pipeline import Watch, optimise
from whet.passes.precision import lowered
from whet.passes.recognise import Numbers
from whet.passes.simplify import simplify
from whet.progress import ProgressMonitor, monitored, phase
from whet.runtime.ahead import compile_ahead
from whet.runtime.debug import (
    Source,
    names_in,
    outputs_of,
    source_in,
    source_of,
    without_outputs,
)
from whet.runtime.devices import compiler_for
from whet.runtime.engine import Engine
from whet.runtime.profile import Profile, check_profiles, profiles_in
from whet.runtime.ranges import ranges_of

if TYPE_CHECKING:
    import onnx

    from whet.plan.target import Device


def build(
    model: str | os.PathLike[str] | bytes | onnx.ModelProto,
    *,
    profiles: Profile | Sequence[Profile] | None = None,
    architectures: str | Sequence[str] = (),
    precision: str | None = None,
    refittable: bool = True,
    debug: str | Sequence[str] = (),
    progress: ProgressMonitor | None = None,
) -> Engine:
    """Reads a model, optimises its graph, and returns the engine; no device is touched.

    `model`: an ONNX file's path, its bytes, or a ModelProto. `profiles`: ranges of the symbolic
    sizes.
    `precision`: None keeps what the model states; "float16" or "bfloat16" does float32 products,
    convolutions and attention in 16 bits, with sums in float32, and what is safe between them;
    inputs, outputs and weights to refit stay float32.
    `architectures`: for which kernels are compiled now and kept in the engine ("avx2",
    "avx512+vnni", "sm90"; "current": of the GPU at hand, which measures them, or else the
    processor), for the most likely sizes of each profile where sizes have names, and for all of
    them.
    `refittable=False` folds weights by value,
    and keeps only the results: a smaller engine that starts faster, and does not know how its model
    was written. `debug`: tensors of the model that sessions of such an engine can read out all the
    same; they are fused no further, and cost nothing more until asked for.
    `progress` is told of phases and steps, and can cancel.
    Raises InvalidModel for a damaged model, UnsupportedModel with all nodes that cannot be read,
    Cancelled.
    """
    architectures, debug, ranges = names_in(architectures), names_in(debug), profiles_in(profiles)
    if is_engine(model):
        raise InvalidModel("an engine was given, which is built already: whet.load reads it")
    with monitored(progress), phase("build", 2 + len(architectures)) as step:
        source, imported = source_of(model)
        step()
        engine = optimised(source, ImportedWeights(imported.weights), precision, debug)
        if not refittable:
            graph, weights = fold_by_value(engine.graph, engine.weights)
            engine = Engine(graph, weights, refittable=False, debug=engine.debug)
        step()
        check_profiles(ranges, engine.graph)
        return with_kernels(replace(engine, profiles=ranges), architectures, step)


def optimised(
    source: Source, weights: WeightStore, precision: str | None, debug: Sequence[str]
) -> Engine:
    """The engine of a model that was read with these weights."""
    numbers = Numbers(weights.array)
    graph = optimise(source.with_outputs(debug), _dump(), numbers)
    if precision is not None:
        graph = optimise(lowered(graph, precision), _dump(), passes=(fold_constants, simplify))
    given = {*source.graph.output_names, *outputs_of(source.graph)}
    named = dict.fromkeys((*graph.output_names, *outputs_of(graph)))
    read = source.frozen | numbers.frozen
    frozen, seen = (
        {name: digest(stored(weights, name)) for name in sorted(names)}
        for names in (read, numbers.seen - read)
    )
    return Engine(
        graph,
        weights,
        frozen=frozen,
        seen=seen,
        unused=frozenset(weights.types) - set(weight_names(graph)) - frozen.keys(),
        debug=tuple(name for name in named if name not in given),
        precision=precision,
        model=lambda: source,
    )


def remade(engine: Engine, weights: WeightStore) -> Engine:
    """The engine as it would be of its model with other weights; raises RefitError, and what
    `build` raises."""
    from whet.frontends.onnx.records import reading

    before = engine.model()
    assert before is not None
    source, _ = source_in(reading(before.model, weights.array))
    new = optimised(source, weights, engine.precision, engine.debug)
    check_profiles(engine.profiles, new.graph)
    lacking = [name for name in weight_names(new.graph) if name not in weights.types]
    if lacking:
        raise RefitError(missing=lacking)
    known = {*weights.types, *engine.unused}
    return replace(new, unused=known - set(weight_names(new.graph)) - new.frozen.keys())


def with_kernels(
    engine: Engine, architectures: Sequence[str], step: Callable[[], None] = lambda: None
) -> Engine:
    """The engine with kernels for architectures, for its profiles; `step` is called after each."""
    if not architectures:
        return engine
    devices = [compiler_for(name) for name in architectures]
    plain = without_outputs(engine.graph, engine.debug)
    kernels = _prebuilt(plain, devices, step, engine.profiles)
    compiled_for = tuple(str(device.architecture) for device in devices)
    return replace(engine, kernels=kernels, architectures=compiled_for)


def _dump() -> Watch | None:
    """Where WHET_DUMP names a folder, what writes a file there for each pass."""
    folder = knobs.dump
    if folder is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    number = itertools.count()

    def dump(name: str, graph: Graph) -> None:
        (folder / f"{next(number):02}-{name}.graph").write_text(f"{graph}\n")

    return dump


def _prebuilt(
    graph: Graph,
    devices: Sequence[Device],
    step: Callable[[], None],
    profiles: Sequence[Profile] = (),
) -> dict[str, bytes]:
    """Kernels for each of the devices, by cache key."""
    likely = [graph.bind(_likely_sizes(graph, profile)) for profile in profiles]
    ranges = ranges_of(graph, profiles)
    kernels: dict[str, bytes] = {}
    for device in devices:
        kernels.update(device.code_besides())
        for bound in likely or [graph]:
            kernels.update(compile_ahead(bound, device))
        if ranges.sizes and device.capabilities.ranges:
            kernels.update(compile_ahead(graph, device, ranges))
        step()
    return kernels


def _likely_sizes(graph: Graph, profile: Profile) -> dict[str, int]:
    """The named sizes of the shapes that a profile holds most likely."""
    sizes: dict[str, int] = {}
    for value in graph.inputs:
        shape = profile.opt.get(value.op.name)  # type: ignore[attr-defined]
        if shape is not None and isinstance(value.type, TensorType):
            bind_shape(value.type, tuple(shape), sizes)
    return sizes
