"""`whet check --per-layer`: the first kernel, and the first pass, after which results differ."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from whet.cli import models
from whet.cli.judge import Finding, compare_one
from whet.cli.terminal import say, table, working
from whet.ir.evaluate import Run, evaluate
from whet.ir.graph import Graph, Value, topological

if TYPE_CHECKING:
    from whet.plan.plan import Plan, Step
    from whet.runtime.engine import Engine
    from whet.runtime.session import Session

MOST_ROWS = 20
MOST_TIMES = 8
"""How often a plan is compared, where a loop runs it again and again."""


def per_layer(
    engine: Engine, session: Session, inputs: dict[str, Any], options: argparse.Namespace
) -> bool:
    """Whether every kernel computes what its operators mean, and every pass keeps the outputs."""
    layers = Layers(session, options.tolerance)
    with working("comparing kernels"):
        session.trace(inputs, layers.look)
    _report(layers)
    changed = None if models.is_engine(options.model) else first_pass(options, inputs)
    if changed:
        say(f"first pass that changes the outputs: {changed}", style="red")
    return not layers.wrong and changed is None


def _report(layers: Layers) -> None:
    wrong = layers.wrong
    if wrong:
        own = [layer for layer in wrong if layer.is_its_own]
        first = own[0] if own else wrong[0]
        say(f"first tensor that differs: {first.finding.name}", style="red")
        if not own:
            say("no kernel alone is wrong: on what it was given each is right, differences add up")
        rows = [
            (f.name, f.type, f"{f.difference:.1e}", f"{f.tolerance:.0e}", _own(layer))
            for layer in wrong[:MOST_ROWS]
            for f in [layer.finding]
        ]
        table(("result of", "type", "difference", "allowed", "of its own"), rows, left=(0, 1))
    right = len(layers.found) - len(wrong)
    said = f"{right} of {len(layers.found)} kernel results are right"
    if layers.not_compared:
        said += f"; {layers.not_compared} have no counterpart in the model and were not compared"
    say(said)


def _own(layer: Layer) -> str:
    return "?" if layer.own is None else f"{layer.own:.1e}"


@dataclass(frozen=True)
class Layer:
    """How far a kernel's result is from the model's, and `own`: from what its operators give on
    the very arrays that it read."""

    finding: Finding
    own: float | None = None

    @property
    def is_its_own(self) -> bool:
        """Whether the kernel itself is to blame, and not what came before it."""
        return self.own is None or self.own > self.finding.tolerance


class Layers:
    """Compares what each step writes with what the model's operators give for the same inputs."""

    def __init__(self, session: Session, tolerance: float | None) -> None:
        self.session, self.tolerance = session, tolerance
        self.found: list[Layer] = []
        self.not_compared = 0
        self.references: dict[Plan, Reference] = {}
        self.seen: dict[Plan, set[int]] = {}
        """The steps of a plan's latest run that were done."""
        self.times: Counter[Plan] = Counter()
        """How often plans were run again: the body of a loop is."""

    @property
    def wrong(self) -> list[Layer]:
        return [layer for layer in self.found if not layer.finding.is_right]

    def look(self, step: Step, values: Mapping[Any, Any]) -> None:
        """Is shown each step when it is done, and what it wrote."""
        plan = next((p for p in self.session.plans if any(s is step for s in p.steps)), None)
        if plan is None:
            return  # between two plans the reference itself runs
        seen = self.seen.setdefault(plan, set())
        if id(step) in seen:
            self.times[plan] += 1
            seen.clear()
            self.references.pop(plan, None)
        seen.add(id(step))
        if self.times[plan] >= MOST_TIMES:
            return
        if plan not in self.references:
            self.references[plan] = Reference(self.session, plan, values)
        reference = self.references[plan]
        for value in step.writes:
            last = next(s for s in reversed(plan.steps) if value in s.writes)
            is_read = any(value in s.reads for s in plan.steps) or value in plan.graph.outputs
            # Else a later step writes more of it, or it is only room that a kernel works in.
            if last is step and is_read and value in values:
                self._compare(reference, step, value, values, self.times[plan])

    def _compare(
        self, reference: Reference, step: Step, value: Value, values: Mapping[Any, Any], time: int
    ) -> None:
        wanted = reference.expected(value)
        if wanted is None:
            self.not_compared += 1
            return
        name = step.where + (f", time {time + 1}" if time else "")
        finding = compare_one(name, values[value], wanted, self.tolerance)
        own = None
        if not finding.is_right:
            alone = reference.on(step, value, values)
            if alone is not None:
                own = compare_one(name, values[value], alone, self.tolerance).difference
        self.found.append(Layer(finding, own))


class Reference:
    """What the steps of a plan should write, by the references of the operators they stand for."""

    def __init__(self, session: Session, plan: Plan, values: Mapping[Any, Any]) -> None:
        self.weights = session.weights.array
        self.graph, self.meanings = session.source(plan)
        self.sizes: dict[str, int] = {}
        wanted = {self.meanings[v] for v in self._bases(plan) if v in self.meanings}
        self.kept: dict[Value, Any] = {}

        def watch(value: Value, array: Any) -> None:
            if value in wanted:
                self.kept[value] = array

        self.given = {value: values[value] for value in self.graph.inputs}
        whole = replace(self.graph, late=None)  # what follows is planned only once this has run
        evaluate(whole, self.given, self.weights, self.sizes, watch)
        self.kept.update(self.given)

    def _bases(self, plan: Plan) -> set[Value]:
        """The Values that steps write, or that those are made of which the model does not have."""
        writes = [value for step in plan.steps for value in step.writes]
        return set(topological(writes, stop=self.meanings))

    def expected(self, value: Value) -> Any:
        """What the model has for a plan's Value, or what its operators make of that; None where
        an operator of the target's own says no more than its kernel does."""
        found = self.meanings.get(value)
        if found is not None and found in self.kept:
            return self.kept[found]
        known = {v: self.kept[m] for v, m in self.meanings.items() if m in self.kept}
        return self._evaluated(value, known)

    def on(self, step: Step, value: Value, values: Mapping[Any, Any]) -> Any:
        """What the operators of a step give on the very arrays that it read; None as above."""
        target = self.meanings.get(value)
        reads = [v for v in step.reads if not v.is_static]
        if target is None or any(v not in self.meanings or v not in values for v in reads):
            return None
        known = {**self.given, **{self.meanings[v]: values[v] for v in reads}}
        return self._evaluated(target, known)

    def _evaluated(self, value: Value, known: Mapping[Value, Any]) -> Any:
        run, results = Run(self.weights, dict(self.sizes)), dict(known)
        for v in topological([value], stop=results):
            if v not in results:
                is_leaf = not v.inputs and v.is_static
                if not is_leaf and not hasattr(v.op, "reference"):
                    return None
                run.apply(v, results)
        return results[value]


def first_pass(options: argparse.Namespace, inputs: dict[str, Any]) -> str | None:
    """The first pass of the optimiser after which the graph gives other outputs."""
    from whet.frontends.onnx import from_onnx

    imported = from_onnx(options.model)
    (_, before), *graphs = models.stages(options.model)

    def outputs(graph: Graph) -> list[Any]:
        given = {value: inputs[value.op.name] for value in graph.inputs}  # type: ignore[attr-defined]
        return evaluate(graph, given, lambda name: imported.weights[name].read())

    expected = outputs(before)
    with working("comparing passes") as work:
        for number, (name, graph) in enumerate(graphs):
            work.step(number, len(graphs), f"comparing after {name}")
            if graph is before:
                continue
            found = [
                compare_one(name, a, e, options.tolerance) for a, e in zip(outputs(graph), expected)
            ]
            if not all(f.is_right for f in found):
                return name
            before = graph
    return None
