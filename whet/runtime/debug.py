"""Debug tensors: any value of a model, by its name in the ONNX file, read out of a run.

A value that fused kernels never store is computed all the same: the model's graph is planned once
more with that value as a further output.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from whet.engine.file import weight_names
from whet.engine.weights import WeightStore
from whet.errors import InvalidInput
from whet.ir.graph import Graph, Value, Weight, constant, map_inner
from whet.plan.plan import Plan, Step

if TYPE_CHECKING:
    import onnx

    from whet.frontends.onnx import Imported
    from whet.frontends.onnx.model import Model


@dataclass(frozen=True, eq=False)
class Source:
    """A model's graph as it was read, and what each name in it stands for."""

    graph: Graph
    tensors: Mapping[str, Value]
    model: Model
    """The model's records, from which it is read again with other tensors as outputs; its tensors
    have their names among the weights."""
    frozen: frozenset[str] = frozenset()
    """Weights that were read as shapes."""
    dtypes: Mapping[str, str] = field(default_factory=dict)
    """Of all tensors, those in the bodies of control flow among them, as far as these were read."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """What a body calls its tensors, by their names where its nodes took the place of another."""

    @cached_property
    def inner(self) -> dict[str, str]:
        """The dtypes of the tensors that only bodies give."""
        from whet.frontends.onnx.watched import inner_names

        return {n: self.dtypes[n] for n in inner_names(self.model.body) if n in self.dtypes}

    @cached_property
    def late(self) -> frozenset[str]:
        """Tensors of the model's own graph that lie behind ranks which only a run can tell."""
        made = {name for node in self.model.body.nodes for name in node.outputs if name}
        return frozenset(made - self.tensors.keys())

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All tensors that can be read out."""
        return tuple(dict.fromkeys((*self.tensors, *sorted(self.late), *self.inner)))

    def unread(self, names: Iterable[str]) -> bool:
        """Whether some lie in bodies that are read only when the model runs."""
        from whet.frontends.onnx.watched import inner_names

        return bool(set(names) & inner_names(self.model.body).keys() - set(self.names))

    def told(self, dtypes: Mapping[str, str]) -> Source:
        """The same, knowing also the dtypes of tensors that were read when the model ran."""
        from whet.frontends.onnx.watched import with_old_names

        return replace(self, dtypes={**with_old_names(dtypes, self.renamed), **self.dtypes})

    def with_outputs(self, names: Collection[str]) -> Graph:
        """The graph that also gives these values; raises InvalidInput with all names it lacks."""
        unknown = [name for name in names if name not in self.names]
        if unknown:
            raise InvalidInput(_unknown(unknown, self._near(unknown)))
        further = [name for name in names if name not in self.tensors]
        source = self._with_further(further) if further else self
        ready = {name: source.tensors[name] for name in names if name in source.tensors}
        return _with_outputs(source.graph, ready)

    def _with_further(self, names: Sequence[str]) -> Source:
        """The model read again so that its own outputs are these, too: tensors behind ranks that
        only a run can tell, and lists of those in bodies."""
        from whet.frontends.onnx.importer import import_model
        from whet.frontends.onnx.watched import watched

        body, inside = self.model.body, {n: self.inner[n] for n in names if n not in self.late}
        given = dict(body.outputs)
        behind = ((name, None) for name in names if name in self.late and name not in given)
        body = replace(body, outputs=(*body.outputs, *behind))
        imported = import_model(watched(replace(self.model, body=body), inside))
        return replace(self, graph=imported.graph, tensors=imported.tensors)

    def _near(self, names: Sequence[str]) -> list[str]:
        """Tensors that may have been meant: results of nodes of these names, and similar names."""
        origins = self.graph.origins
        of_nodes = [t for t, v in self.tensors.items() if set(origins.get(v, ())) & set(names)]
        similar = [near for n in names for near in get_close_matches(n, self.names, 3)]
        return list(dict.fromkeys([*of_nodes, *similar]))


def read(model: str | os.PathLike[str] | bytes | onnx.ModelProto) -> Source:
    """A model's graph, from its ONNX file."""
    return source_of(model)[0]


def source_of(model: str | os.PathLike[str] | bytes | onnx.ModelProto) -> tuple[Source, Imported]:
    """The same, with all else that was read."""
    from whet.frontends.onnx.protobuf import read_model

    return source_in(read_model(model))


def source_in(records: Model) -> tuple[Source, Imported]:
    """The same of a model's records."""
    from whet.frontends.onnx.importer import import_model
    from whet.frontends.onnx.records import named

    imported = import_model(records)
    kept = named(records, imported.keys)
    more = kept, imported.frozen, imported.dtypes, imported.renamed
    return Source(imported.graph, imported.tensors, *more), imported


def names_in(names: str | Iterable[str]) -> tuple[str, ...]:
    """Names, of which one may stand alone; raises InvalidInput for what is none."""
    is_several = isinstance(names, Iterable) and not isinstance(names, str)
    found = tuple(names) if is_several else (names,)
    if not all(isinstance(name, str) for name in found):
        raise InvalidInput(f"a name is needed, or a list of names, not {names!r}")
    return found  # type: ignore[return-value]


def outputs_of(graph: Graph) -> tuple[str, ...]:
    """The names of all that a graph gives, be it behind ranks that only a run can tell."""
    return graph.output_names if graph.late is None else graph.late.outputs


def without_outputs(graph: Graph, names: Collection[str]) -> Graph:
    """The graph that does not give the outputs of these names."""
    if not names:
        return graph
    kept = [n for n, name in enumerate(graph.output_names) if name not in names]
    late = graph.late and graph.late.without(names)
    captured = graph.outputs[len(graph.output_names) :] if late is not None else ()
    return replace(
        graph,
        outputs=(*(graph.outputs[n] for n in kept), *captured),
        output_names=tuple(graph.output_names[n] for n in kept),
        late=late,
    )


def _with_outputs(graph: Graph, wanted: Mapping[str, Value]) -> Graph:
    """The graph with further outputs, behind its own, in the order in which they are computed."""
    new = {name: v for name, v in wanted.items() if name not in graph.output_names}
    ready = len(graph.output_names)
    whole = replace(
        graph,
        outputs=(*graph.outputs[:ready], *new.values(), *graph.outputs[ready:]),
        output_names=(*graph.output_names, *new),
    )
    place = {value: number for number, value in enumerate(whole.values)}
    order = sorted(new, key=lambda name: place[new[name]])
    return replace(
        whole,
        outputs=(*graph.outputs[:ready], *(new[n] for n in order), *graph.outputs[ready:]),
        output_names=(*graph.output_names, *order),
    )


class Tensors:
    """Which values of an engine can be read out, and the graphs that compute them."""

    def __init__(
        self, graph: Graph, marked: Sequence[str], source: Callable[[], Source | None]
    ) -> None:
        self.graph = without_outputs(graph, marked)
        """What runs where nothing is read out."""
        self.marked, self.source = marked, source
        self._whole = graph
        self._graphs: dict[Any, Graph] = {}

    def graph_of(
        self,
        names: Collection[str],
        weights: WeightStore,
        model: str | os.PathLike[str] | bytes | onnx.ModelProto | None = None,
        dtypes: Callable[[], Mapping[str, str]] = dict,
    ) -> Graph:
        """The graph that also gives these values; raises InvalidInput for what it cannot. `dtypes`
        is asked for those of tensors in bodies that are read only when the model runs."""
        key = tuple(sorted(names)), _identity(model)
        if key not in self._graphs:
            self._graphs[key] = self._graph_of(names, weights, model, dtypes)
        return self._graphs[key]

    def _graph_of(
        self,
        names: Collection[str],
        weights: WeightStore,
        model: str | os.PathLike[str] | bytes | onnx.ModelProto | None,
        dtypes: Callable[[], Mapping[str, str]],
    ) -> Graph:
        known = {*self._whole.output_names, *outputs_of(self._whole)}
        if known.issuperset(names):
            return without_outputs(self._whole, [n for n in self.marked if n not in names])
        source = self.source() if model is None else read(model)
        if source is None:
            raise InvalidInput(_unmarked([n for n in names if n not in known], self.graph))
        if model is not None:
            _require_same_inputs(source.graph, self.graph)
        if source.unread(names):
            source = source.told(dtypes())
        # The passes take longer to load than the start of a session may.
        from whet.passes.pipeline import optimise
        from whet.passes.recognise import Numbers

        graph = source.with_outputs(names)
        if model is not None:
            graph = _with_lacking(graph, weights, source.model)
        graph = optimise(graph, numbers=Numbers(weights.array))
        lacking = [name for name in weight_names(graph) if name not in weights.types]
        if lacking:
            raise InvalidInput(
                f"{', '.join(map(repr, names))} need the weights {', '.join(lacking)}, which no "
                "output needs, and which the engine file does not have: use the ONNX file "
                "(session.debug(inputs, names, model='model.onnx'))"
            )
        return graph


def _with_lacking(graph: Graph, weights: WeightStore, model: Model) -> Graph:
    """The graph in which weights that an engine does not have are constants of its model."""
    from whet.frontends.onnx.records import tensors_in

    there = {t.name: t for t in tensors_in(model) if t.name and t.name not in weights.types}

    def known(graph: Graph) -> Graph:
        graph = map_inner(graph, known)
        read = {v: v.op.name for v in graph.values if isinstance(v.op, Weight)}
        arrays = {v: there[name].read() for v, name in read.items() if name in there}
        return graph.substitute({v: constant(array, v.dtype) for v, array in arrays.items()})

    return known(graph)


class Readout:
    """Calls back for each tensor when the step that writes it is done; for those that no step does
    (inputs, weights, what lies between two plans) at the end of the run."""

    def __init__(
        self, callbacks: Mapping[str, Callable[[Any], None]], plans: Callable[[], Sequence[Plan]]
    ) -> None:
        self.callbacks, self.plans = dict(callbacks), plans
        self.written: dict[Step, list[tuple[str, Value]]] = {}
        self.known: set[Plan] = set()

    def look(self, step: Step, values: Mapping[Value, Any]) -> None:
        """Is shown each step when it is done."""
        if step not in self.written:
            self._learn()
        for name, value in self.written.get(step, ()):
            callback = self.callbacks.pop(name, None)
            if callback is not None:
                callback(values[value])

    def finish(self, named: Mapping[str, Any]) -> None:
        """Is shown all that the run gave."""
        for name in [name for name in named if name in self.callbacks]:
            self.callbacks.pop(name)(named[name])

    def _learn(self) -> None:
        """Which step writes which of the tensors, in plans that are new."""
        for plan in self.plans():
            if plan in self.known:
                continue
            self.known.add(plan)
            wanted = dict(zip(plan.graph.outputs, plan.graph.output_names))
            last = {v: step for step in plan.steps for v in step.writes if v in wanted}
            for value, step in last.items():
                self.written.setdefault(step, []).append((wanted[value], value))


def _identity(model: str | os.PathLike[str] | bytes | onnx.ModelProto | None) -> Any:
    """What tells models apart: of a file where it lies and when it was written, else the bytes."""
    if isinstance(model, str | os.PathLike):
        with suppress(OSError, ValueError):
            status = os.stat(model)
            return os.fspath(model), status.st_mtime_ns, status.st_size
        return os.fspath(model)
    if model is None:
        return None
    data = model if isinstance(model, bytes) else model.SerializeToString()
    return blake2b(data, digest_size=20).digest()


def _require_same_inputs(given: Graph, engine: Graph) -> None:
    theirs, ours = ([(v.op, v.type) for v in graph.inputs] for graph in (given, engine))
    if theirs != ours:
        raise InvalidInput("the engine was built from another model: its inputs are others")


def _unknown(names: Sequence[str], near: Sequence[str]) -> str:
    """What is wrong with names that a model does not have."""
    said = f"; there are {', '.join(map(repr, near))}" if near else ""
    listed = ", ".join(map(repr, names))
    return (
        f"the model has no tensor {listed} that can be read out{said}. engine.tensors, or `whet "
        "show MODEL --tensors`, has all. In a branch that no run takes there is none; in a body "
        "behind ranks that only a run can tell there is for session.debug, and not when an engine "
        "is built"
    )


def _unmarked(names: Sequence[str], graph: Graph) -> str:
    """What to do about names that an engine file does not keep."""
    listed = ", ".join(map(repr, names))
    made = {node for found in graph.origins.values() for node in found}
    inside = [name for name in names if name in made or name.partition("_output_")[0] in made]
    fused = f" ({', '.join(map(repr, inside))} was fused into a kernel)" if inside else ""
    return (
        f"the engine file does not know the tensors {listed}{fused}: use the ONNX "
        "file (session.debug(inputs, names, model='model.onnx')), or mark them when the engine is "
        f"built (debug={list(names)}, whet build --debug {names[0]})"
    )
