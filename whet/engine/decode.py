"""Plain data -> Graph: every name, count and type is checked, and all types are inferred anew."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from whet.engine.attributes import AttributeReader, check_type
from whet.engine.plain import Plain, a_list, a_text, an_index, entries, need, record, short
from whet.engine.schema import Schema
from whet.engine.size_table import SizeReader
from whet.errors import Error, InvalidEngine
from whet.ir.graph import Graph, Guard, Input, Late, Op, Parameter, Value, collect_guards, make
from whet.ir.sizes import Size

Arrays = Callable[[str], np.ndarray]


def _no_weights(name: str) -> np.ndarray:
    raise InvalidEngine(f"there is no weight {name!r}")


def decode(
    plain: Plain, constants: memoryview | bytes = b"", weights: Arrays = _no_weights
) -> Graph:
    """The graph that `encode` wrote; raises InvalidEngine for what it would not have written.

    A late region's tensors are read from `weights`.
    """
    try:
        with _no_collection():
            return _GraphReader(plain, constants, weights).run()
    except RecursionError:
        raise InvalidEngine("the graph is nested too deep") from None


@contextmanager
def _no_collection() -> Iterator[None]:
    """Searching thousands of objects that all stay alive for garbage would double the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _GraphReader:
    """The tables of one engine, as far as they are read."""

    def __init__(self, plain: Plain, constants: memoryview | bytes, weights: Arrays) -> None:
        self.size_table, self.class_table, self.graph_table = (
            a_list(part, "a table") for part in record(plain, "sizes", "operators", "graphs")
        )
        self.constants = constants
        self.weights = weights
        self.sizes = SizeReader()
        self.graphs: list[Graph] = []
        self.guarded: set[tuple[Size, Size, bool]] = set()

    def run(self) -> Graph:
        need(len(self.graph_table) > 0, "the engine holds no graph")
        for index, entry in enumerate(self.size_table):
            with _locate(f"size {index}"):
                self.sizes.add(a_list(entry, "a size"))
        self.attributes = AttributeReader(self.class_table, self.sizes, self.constants, self.graphs)
        for entry in self.graph_table:
            given = entry.get("guards") if type(entry) is dict else []
            guards = self.guards(a_list(given, "guards"))
            self.guarded.update((g.left, g.right, g.broadcast) for g in guards)
        for index, entry in enumerate(self.graph_table):
            outermost = index == len(self.graph_table) - 1
            with _locate("the graph" if outermost else f"inner graph {index}"):
                self.graphs.append(self.graph(entry, Input if outermost else Parameter))
        return self.graphs[-1]

    def graph(self, plain: Plain, leaf: type[Op]) -> Graph:
        """One graph; its inputs are all the Values of class `leaf` in it."""
        ops, nodes, inputs, outputs, names, guards, origins, definers, late = record(plain, *_GRAPH)
        made = []
        for index, entry in enumerate(a_list(ops, "operators")):
            with _locate(f"operator {index}"):
                made.append(self.attributes.op(a_list(entry, "an operator")))
        values, needed = self.values(a_list(nodes, "nodes"), made)
        came_from = self.origins(values, a_list(origins, "origins"))
        graph = Graph(
            self.pick(values, inputs, "inputs"),
            self.pick(values, outputs, "outputs"),
            tuple([a_text(n, "an output's name") for n in a_list(names, "output names")]),
            (*self.guards(a_list(guards, "guards")), *self.missing_guards(needed, came_from)),
            came_from,
            self.definers(values, a_list(definers, "definers")),
            None if late is None else self.late(late, a_list(names, "output names")),
        )
        _check_order(graph, values)
        _check_ends(graph, values, leaf)
        return graph

    def values(
        self, nodes: list[Plain], ops: list[tuple[Op, Schema]]
    ) -> tuple[list[Value], list[tuple[Value, Guard]]]:
        """All results of the nodes, and what these need of named sizes."""
        values: list[Value] = []
        needed: list[tuple[Value, Guard]] = []
        found: list[Guard] = []
        with collect_guards(found):
            for index, node in enumerate(nodes):
                try:
                    results = _node(node, values, ops)
                except Exception as error:
                    # An operator's `infer` trusts its caller; given nonsense it may raise anything.
                    raise InvalidEngine(f"node {index}: {_reason(error)}") from None
                values.extend(results)
                needed.extend([(results[0], guard) for guard in found])
                found.clear()
        return values, needed

    def missing_guards(
        self, needed: list[tuple[Value, Guard]], origins: Mapping[Value, tuple[str, ...]]
    ) -> Iterator[Guard]:
        """What no guard in the file says and the nodes need: kernels rely on it."""
        for value, guard in needed:
            key = (guard.left, guard.right, guard.broadcast)
            if key not in self.guarded:
                self.guarded.add(key)
                node = " + ".join(origins.get(value, ())) or str(value.op)
                yield replace(guard, node=node)

    def pick(self, values: list[Value], indices: Plain, what: str) -> tuple[Value, ...]:
        return tuple([values[an_index(i, len(values), "the value")] for i in a_list(indices, what)])

    def guards(self, plain: list[Plain]) -> tuple[Guard, ...]:
        result = []
        for entry in plain:
            left, right, node, broadcast = entries(entry, 4, "a guard")
            need(type(broadcast) is bool, "a guard is for broadcasting or not")
            guard = Guard(
                self.sizes.size(left), self.sizes.size(right), a_text(node, "a node"), broadcast
            )
            result.append(guard)
        return tuple(result)

    def origins(self, values: list[Value], plain: list[Plain]) -> dict[Value, tuple[str, ...]]:
        result: dict[Value, tuple[str, ...]] = {}
        for entry in plain:
            names, places = entries(entry, 2, "an origin")
            key = tuple([a_text(n, "a node's name") for n in a_list(names, "names")])
            result.update(dict.fromkeys(self.pick(values, places, "values"), key))
        return result

    def definers(self, values: list[Value], plain: list[Plain]) -> dict[str, Value]:
        result: dict[str, Value] = {}
        for entry in plain:
            name, place = entries(entry, 2, "a definer")
            need(a_text(name, "a size's name") not in result, f"two definers of {short(name)}")
            (result[name],) = self.pick(values, [place], "values")
        return result

    def late(self, plain: Plain, early: list[Plain]) -> Late:
        """The region that waits for a run's values, which gives all outputs that are not there
        `early`; there are only ones of ONNX models yet."""
        from whet.frontends.onnx.region import Region

        (region,) = record(plain, "onnx")
        try:
            late = Region.from_plain(region, self.weights)
        except InvalidEngine:
            raise
        except Exception as error:
            raise InvalidEngine(f"the late region: {_reason(error)}") from None
        given = {*early, *(name for name, _ in late.body.outputs)}
        lacking = [name for name in late.outputs if name not in given]
        need(not lacking, f"no stage gives the output {short(lacking[:1])}")
        return late


_GRAPH = ("ops", "nodes", "inputs", "outputs", "names", "guards", "origins", "definers", "late")


def _node(entry: Plain, values: list[Value], ops: list[tuple[Op, Schema]]) -> tuple[Value, ...]:
    """The results of one more node, which reads Values that are there already."""
    if type(entry) is not list or not entry:
        raise InvalidEngine(f"{short(entry)} is no node")
    op, schema = ops[an_index(entry[0], len(ops), "the operator")]
    count = len(values)
    reads = [None if i is None else values[an_index(i, count, "the value")] for i in entry[1:]]
    if not schema.least_inputs <= len(reads) <= schema.most_inputs:
        raise InvalidEngine(f"{op} cannot take {len(reads)} inputs")
    results = make(op, reads)
    for result in results:
        check_type(result.type)
    return results


def _check_order(graph: Graph, values: Sequence[Value]) -> None:
    """What defines a size comes before what uses it, or a run would wait for itself."""
    if not graph.definers:
        return
    place = {value: i for i, value in reversed(list(enumerate(values)))}
    for value in values:
        if any(place[before] > place[value] for before in graph.needs(value)):
            raise InvalidEngine(f"{value.op} uses a size that is defined after it")


def _check_ends(graph: Graph, values: Sequence[Value], leaf: type[Op]) -> None:
    """Inputs are distinct leaves, and all there are; each output has a name, or none has."""
    need(all(isinstance(v.op, leaf) for v in graph.inputs), f"an input that is no {leaf.__name__}")
    need(len(set(graph.inputs)) == len(graph.inputs), "an input that is listed twice")
    leaves = {v for v in values if isinstance(v.op, Input | Parameter)}
    need(leaves == set(graph.inputs), "a value that neither is an input nor comes from one")
    names = [v.op.name for v in graph.inputs if isinstance(v.op, Input)]
    need(len(set(names)) == len(names), "two inputs of one name")
    unnamed = len(graph.outputs) - len(graph.output_names)
    if leaf is Parameter:
        need(not graph.late, "an inner graph with a late region")
        need(unnamed in (0, len(graph.outputs)), "an output without a name")
    else:
        captured = graph.late.captured if graph.late else ()
        need(unnamed == len(captured), "an output without a name")


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, Error) else f"{type(error).__name__}: {error}"


@contextmanager
def _locate(where: str) -> Iterator[None]:
    """Says where in the engine an error is."""
    try:
        yield
    except InvalidEngine as error:
        raise InvalidEngine(f"{where}: {error}") from None
