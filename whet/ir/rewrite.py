"""Rules: a pattern, and the function that builds what replaces it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from whet.ir.graph import Anything, Graph, Op, Pattern, Value, make
from whet.ir.match import (
    Bound,
    Called,
    Matcher,
    Number,
    Once,
    ReadNumber,
    Such,
    no_number,
    scaling_operators,
)
from whet.ir.sizes import Size, is_different
from whet.ir.types import TensorType

MOST_STEPS = 200  # rewrites for each Value that a graph has; more means that rules undo each other


Built = Value | str | None
"""What a rule's function returns: the replacement, or None or a reason where it declines."""


@dataclass(frozen=True)
class Rule:
    """`build` makes the replacement of what one of the patterns matches."""

    patterns: tuple[Pattern, ...]
    build: Callable[..., Built]

    @property
    def name(self) -> str:
        return self.build.__name__

    @property
    def roots(self) -> tuple[type[Op], ...]:
        found = dict.fromkeys(type(p.op) for p in self.patterns)
        if not scaling_operators().isdisjoint(found):
            found |= dict.fromkeys(scaling_operators())
        return tuple(found)

    @cached_property
    def arguments(self) -> frozenset[str]:
        return frozenset(inspect.signature(self.build).parameters)

    def apply(self, value: Value, matcher: Matcher) -> tuple[Value, Bound] | None:
        """The replacement of `value` and what the pattern's names stood for, or None."""
        for pattern in self.patterns:
            matcher.numbers_read.clear()
            for bound in matcher.matches(pattern, value, {}):
                known = {"root": value, "matcher": matcher, **bound}
                new = self.build(**{name: known[name] for name in self.arguments})
                if isinstance(new, str):
                    matcher.note("{}: {}", self.name, new)
                elif new is not None and new is not value and _same_type(new, value):
                    return new, bound
        return None


@dataclass(frozen=True)
class ClassRule:
    """`build` makes the replacement of a Value whose operator is of one of the classes."""

    roots: tuple[type[Op], ...]
    build: Callable[[Value], Built]

    @property
    def name(self) -> str:
        return self.build.__name__

    def apply(self, value: Value, matcher: Matcher) -> tuple[Value, Bound] | None:
        """The replacement of `value`, or None."""
        matcher.numbers_read.clear()
        new = self.build(value)
        if isinstance(new, str):
            matcher.note("{}: {}", self.name, new)
        elif new is not None and new is not value and _same_type(new, value):
            return new, {}
        return None


Rules = list[Rule | ClassRule]


def _same_type(new: Value, old: Value) -> bool:
    """Whether the replacement has the replaced Value's type, as far as sizes can be compared."""
    a, b = new.type, old.type
    if a == b or not (isinstance(a, TensorType) and isinstance(b, TensorType)):
        return a == b
    return a.dtype == b.dtype and a.rank == b.rank and all(map(_replaces, a.shape, b.shape))


def _replaces(new: Size, old: Size) -> bool:
    """Whether one size may stand for another; a named one that was stretched to a number is 1."""
    return new == old or not (isinstance(old, int) or is_different(new, old))


def rule_for(*classes: type[Op]) -> Callable[[Callable[[Value], Built]], ClassRule]:
    """Decorates a function of Values whose operator is of one of the classes or subclasses."""
    return lambda build: ClassRule(classes, build)


def rule(*patterns: Callable[..., Pattern]) -> Callable[[Callable[..., Built]], Rule]:
    """Decorates the function that builds the replacement; its arguments are among the patterns'.

    `root` among its arguments is the Value that matched, `matcher` the Matcher. A name used as an
    input binds a Value, a name used as an attribute binds the attribute. Operands of a commutative
    operator match in either order, factors of a product in any order and nesting.
    """
    made = tuple(
        fn(**{name: Pattern(Anything(name), ()) for name in inspect.signature(fn).parameters})
        for fn in patterns
    )
    return lambda build: Rule(made, build)


def number(hole: Pattern) -> Pattern:
    """Matches a Value that is one number known now; binds the number as a float or int."""
    return Pattern(Number(_name(hole)), ())


def such(hole: Pattern, predicate: Callable[[Value], bool]) -> Pattern:
    """Matches a Value of which the predicate holds."""
    return Pattern(Such(_name(hole), predicate), ())


def static(hole: Pattern) -> Pattern:
    """Matches a Value that depends on weights and constants alone."""
    return such(hole, _static)


def _static(value: Value) -> bool:
    return value.is_static


def called(hole: Pattern, pattern: Pattern) -> Pattern:
    """Matches what the pattern does, and binds the Value: the hole may stand for it elsewhere."""
    return Pattern(Called(_name(hole)), (pattern,))


def once(pattern: Pattern) -> Pattern:
    """Matches what the pattern does, where the Value has one reader and is not computed twice."""
    return Pattern(Once(), (pattern,))


def _name(hole: Pattern) -> str:
    assert isinstance(hole.op, Anything)
    return hole.op.name


def rewrite(
    graph: Graph,
    rules: Sequence[Rule | ClassRule],
    read: ReadNumber = no_number,
    freeze: Callable[[Iterable[str]], None] | None = None,
) -> Graph:
    """Applies the rules, inputs first, to every Value and to what they build, until none applies.

    `read` gives a one-element weight's number where a rule may look at it; `freeze` is told the
    names of the weights whose numbers a rule has used up.
    """
    return Rewriting(graph, rules, read, freeze).run()


class Rewriting:
    """One application of rules to a graph."""

    def __init__(
        self,
        graph: Graph,
        rules: Iterable[Rule | ClassRule],
        read: ReadNumber = no_number,
        freeze: Callable[[Iterable[str]], None] | None = None,
    ) -> None:
        self.graph = graph
        self.uses = dict(graph.uses)
        self.origins = dict(graph.origins)
        self.freeze = freeze
        self.matcher = Matcher(self.uses, read)
        self.steps = 0
        self.rules = tuple(rules)
        self.by_root: dict[type[Op], list[Rule | ClassRule]] = {}
        self.done: dict[Value | None, Value | None] = {None: None}
        self.forward: dict[Value, Value] = {}

    def run(self) -> Graph:
        for value in self.graph.values:
            self.normalize(value)
        new = {old: done for old, done in self.done.items() if old is not None and done is not None}
        return self.graph.replaced(new, self.origins)

    def normalize(self, value: Value) -> None:
        """Finds the form of `value` to which no rule applies; a stack, since graphs are deep."""
        done, stack = self.done, [value]
        while stack:
            v = stack[-1]
            if v in done:
                stack.pop()
            elif v in self.forward:
                self._follow(v, stack)
            else:
                try:
                    inputs = tuple([done[i] for i in v.inputs])
                except KeyError:
                    stack.extend(i for i in v.inputs if i is not None and i not in done)
                else:
                    self.step(v, inputs)

    def _follow(self, v: Value, stack: list[Value]) -> None:
        """Takes over what became of the Value that replaced v, or waits for it."""
        onward = self.forward[v]
        if onward in self.done:
            self.done[v] = self.done[onward]
            return
        stack.append(onward)
        if len(stack) > 2 * len(self.forward) + len(self.graph.values):
            raise RuntimeError(f"rules undo each other: {self._fired(stack[-8:])}")

    def _fired(self, values: Iterable[Value]) -> str:
        """The rules that would apply to the Values, for a message."""
        names = [
            f"{r.name} on {v}"
            for v in values
            for r in self._rules_for(type(v.op))
            if r.apply(v, self.matcher) is not None
        ]
        return "; ".join(dict.fromkeys(names))

    def step(self, v: Value, inputs: tuple[Value | None, ...]) -> None:
        """A Value whose inputs are done is rebuilt on them, or replaced, or done itself."""
        if inputs != v.inputs:
            self.replace(v, make(v.op, inputs)[v.index], self.origins.get(v, ()))
            return
        for r in self._rules_for(type(v.op)):
            outcome = r.apply(v, self.matcher)
            if outcome is not None:
                new, bound = outcome
                if self.freeze is not None:
                    self.freeze(self.matcher.numbers_read)
                consumed = self._consumed(new, bound)
                self.replace(v, new, tuple(dict.fromkeys((*consumed, *self._names(v, bound)))))
                return
        self.done[v] = v

    def _rules_for(self, root: type[Op]) -> list[Rule | ClassRule]:
        if root not in self.by_root:
            self.by_root[root] = [r for r in self.rules if issubclass(root, r.roots)]
        return self.by_root[root]

    def replace(self, old: Value, new: Value, names: tuple[str, ...]) -> None:
        self.steps += 1
        if self.steps > MOST_STEPS * (len(self.graph.values) + 1):
            rules = ", ".join(r.name for r in self.rules)
            raise RuntimeError(f"the rules change the graph without end: {rules}")
        self.forward[old] = new
        readers = self.uses.get(old, 1) - (new in old.inputs)
        self.uses[new] = self.uses.get(new, 0) + readers
        stack = [new] if names else []
        while stack:
            value = stack.pop()
            if value.inputs and value not in self.origins:
                self.origins[value] = names
                stack.extend(i for i in value.inputs if i is not None)

    def _consumed(self, new: Value, bound: Bound) -> list[str]:
        """The user's nodes behind what the pattern's names stood for and `new` no longer reads: it
        was taken apart, as a convolution that gets other weights."""
        left = {v for v in bound.values() if isinstance(v, Value) and v in self.origins}
        stack, seen = [new] if left else [], set[Value]()
        while stack and left:
            value = stack.pop()
            if value not in seen:
                seen.add(value)
                left.discard(value)
                if value not in self.origins:
                    stack.extend(i for i in value.inputs if i is not None)
        return [name for v in bound.values() if v in left for name in self.origins[v]]

    def _names(self, root: Value, bound: Bound) -> tuple[str, ...]:
        """The user's nodes between `root` and what the pattern's names stand for."""
        names = dict.fromkeys(self.origins.get(root, ()))
        if not bound:
            return tuple(names)
        holes = {v for v in bound.values() if isinstance(v, Value)}
        stack, seen = [root], set(holes)
        while stack:
            value = stack.pop()
            if value in seen:
                continue
            seen.add(value)
            names.update(dict.fromkeys(self.origins.get(value, ())))
            stack.extend(i for i in value.inputs if i is not None)
        return tuple(names)


def explain(
    r: Rule | ClassRule, value: Value, uses: Mapping[Value, int], read: ReadNumber = no_number
) -> str:
    """Why the rule does not apply to the Value: the reason found deepest in the pattern, or ""."""
    matcher = Matcher(uses, read, reasons=[])
    if r.apply(value, matcher) is not None:
        return ""
    assert matcher.reasons is not None
    return max(matcher.reasons, key=lambda reason: reason[0], default=(0, "no reason"))[1]
