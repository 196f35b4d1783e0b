"""Operators of classical machine learning: look-up tables, forests, support vector machines."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import numpy as np

from whet.errors import InvalidInput, InvalidModel, ShapeError
from whet.ir.graph import Op, Value, constant, operator
from whet.ir.types import TensorType, dtype_name
from whet.ops.elementwise import (
    Array,
    Cast,
    Equal,
    IsNaN,
    Less,
    LessOrEqual,
    Not,
    Or,
    Where,
    cast_to,
)
from whet.ops.gather import GatherElements, ScatterElements
from whet.ops.movement import Gather, broadcast_to


@operator
class Lookup(Op):
    """For each element the value that stands beside it in `keys`, or `default`; NaN finds NaN.

    Of equal keys the last counts. Without a default, an element that is no key raises InvalidInput.
    """

    keys: np.ndarray
    values: np.ndarray
    default: np.ndarray | None = None

    def infer(self, x: TensorType) -> TensorType:
        if self.keys.shape != self.values.shape:
            raise ShapeError(f"{self.keys.size} keys do not fit {self.values.size} values")
        return x.with_dtype(dtype_name(self.values.dtype))

    def reference(self, x: Array) -> Array:
        place = {_hashable(key): i for i, key in enumerate(self.keys.tolist())}
        found = np.array([place.get(_hashable(e), -1) for e in x.ravel().tolist()], np.int64)
        if self.default is None:
            if (found < 0).any():
                missing = x.ravel()[found < 0][0]
                raise InvalidInput(f"{missing!r} is none of the {self.keys.size} known categories")
            return self.values[found].reshape(x.shape)
        candidates = np.append(self.values, self.default.reshape(1))
        return candidates[found].reshape(x.shape)


def _hashable(x: Any) -> Any:
    return "NaN" if x != x else (type(x), x) if isinstance(x, str) else x


MEMBER = 6  # the mode of a node that asks whether the feature is in a set
_COMPARE = (np.less_equal, np.less, np.greater_equal, np.greater, np.equal, np.not_equal)


@operator
class Forest(Op):
    """For each row of x[N, F] the `kind` ("sum", "max", "min") of its leaves' votes: [N, targets].

    Node i asks whether x[:, features[i]] compares by modes[i] (<=, <, >=, >, ==, !=, member) to
    splits[i], and goes on at yes[i] or no[i]: a node, or a leaf written as ~leaf. NaN goes where
    missing[i] says. Leaf j has the votes begins[j] to begins[j + 1]: weights[k] for voted[k]. The
    set of a member node is members[i], padded with NaN.
    """

    kind: Annotated[str, Literal["sum", "max", "min"]]
    targets: int
    roots: np.ndarray
    features: np.ndarray
    modes: np.ndarray
    splits: np.ndarray
    yes: np.ndarray
    no: np.ndarray
    missing: np.ndarray
    members: np.ndarray
    begins: np.ndarray
    voted: np.ndarray
    weights: np.ndarray

    def infer(self, x: TensorType) -> TensorType:
        if x.rank != 2:
            raise ShapeError(f"a forest takes rows of features, not {x}")
        size = x.shape[1]
        if isinstance(size, int) and self.features.max(initial=-1) >= size:
            raise ShapeError(f"the forest asks for feature {self.features.max()} of {size}")
        return TensorType(dtype_name(self.weights.dtype), (x.shape[0], self.targets))

    def reference(self, x: Array) -> Array:
        leaves = ~self._descend(x)
        least = {"sum": 0.0, "max": -np.inf, "min": np.inf}[self.kind]
        combine = {"sum": np.add, "max": np.maximum, "min": np.minimum}[self.kind]
        scores = np.full((len(x), self.targets), least)
        voted = np.zeros(scores.shape, bool)
        counts = np.diff(self.begins)
        for i in range(counts.max(initial=0)):
            row, tree = np.nonzero(counts[leaves] > i)
            vote = self.begins[leaves[row, tree]] + i
            combine.at(scores, (row, self.voted[vote]), self.weights[vote].astype(np.float64))
            voted[row, self.voted[vote]] = True
        return np.where(voted, scores, 0).astype(self.weights.dtype)

    def _descend(self, x: Array) -> Array:
        """Where each row ends in each tree, as ~leaf."""
        if self.features.max(initial=-1) >= x.shape[1]:
            raise ShapeError(f"the forest asks for feature {self.features.max()} of {x.shape[1]}")
        at = np.broadcast_to(self.roots, (len(x), len(self.roots))).copy()
        for _ in range(len(self.features) + 1):
            row, tree = np.nonzero(at >= 0)
            if not row.size:
                return at
            node = at[row, tree]
            value = x[row, self.features[node]]
            at[row, tree] = np.where(self._asked(node, value), self.yes[node], self.no[node])
        raise InvalidModel("a tree's nodes lead back to themselves")

    def _asked(self, node: Array, value: Array) -> Array:
        """What each node answers to its feature's value."""
        answer = np.zeros(len(node), bool)
        for mode, compare in enumerate(_COMPARE):
            those = self.modes[node] == mode
            answer[those] = compare(value[those], self.splits[node[those]])
        those = self.modes[node] == MEMBER
        answer[those] = (value[those, None] == self.members[node[those]]).any(1)
        return np.where(np.isnan(value), self.missing[node], answer)

    def lower(self, x: Value) -> Value:
        """All trees at once, a step down for each level; then the votes of each leaf in turn."""
        depth = self._depth()
        widest = int(np.diff(self.begins).max(initial=0))
        known = x.dtype in ("float32", "float64") and self.members.shape[1:] <= (MOST_DEPTH,)
        if not known or not 0 < depth <= MOST_DEPTH or not 0 < widest <= MOST_DEPTH:
            return self(x)
        at = broadcast_to(constant(self.roots.reshape(1, -1), "int64"), x.shape[0], len(self.roots))
        for _ in range(depth):
            at = self._step(x, at)
        return self._votes(-1 - at, widest)

    def _depth(self) -> int:
        """How many questions a row is asked at most; more than MOST_DEPTH are not counted."""
        level = np.unique(self.roots[self.roots >= 0])
        for depth in range(MOST_DEPTH + 1):
            if not level.size:
                return depth
            below = np.concatenate([self.yes[level], self.no[level]])
            level = np.unique(below[below >= 0])
        return MOST_DEPTH + 1

    def _step(self, x: Value, at: Value) -> Value:
        """The node or ~leaf that follows, for each row and tree."""
        done = Less()(at, constant(0, "int64"))
        node = Where()(done, constant(0, "int64"), at)
        value = GatherElements(1)(x, _at(self.features, node, "int64"))
        answer = Where()(IsNaN()(value), _at(self.missing, node, "bool"), self._answer(value, node))
        after = Where()(answer, _at(self.yes, node, "int64"), _at(self.no, node, "int64"))
        return Where()(done, at, after)

    def _answer(self, value: Value, node: Value) -> Value:
        wide = dtype_name(np.result_type(value.tensor.numpy, self.splits.dtype))
        value, split = cast_to(value, wide), _at(self.splits, node, wide)
        answer: Value | None = None
        for mode in np.unique(self.modes):
            if mode == MEMBER:
                columns = (_at(column, node, wide) for column in self.members.T)
                this = functools.reduce(Or(), (Equal()(value, c) for c in columns))
            else:
                this = _ASK[mode](value, split)
            here = Equal()(_at(self.modes, node, "int64"), constant(int(mode), "int64"))
            answer = this if answer is None else Where()(here, this, answer)
        assert answer is not None
        return answer

    def _votes(self, leaf: Value, widest: int) -> Value:
        """What the leaves of each row say, one vote of each leaf after the other."""
        neutral = {"sum": 0.0, "max": -np.inf, "min": np.inf}[self.kind]
        shape = leaf.shape[0], self.targets
        scores = broadcast_to(constant(neutral, "float64"), *shape)
        voted = broadcast_to(constant(0, "int64"), *shape)
        counts, begin = _at(np.diff(self.begins), leaf, "int64"), _at(self.begins, leaf, "int64")
        for i in range(widest):
            there = Less()(constant(i, "int64"), counts)
            vote = Where()(there, begin + i, constant(0, "int64"))
            target = _at(self.voted, vote, "int64")
            weight = _at(self.weights, vote, "float64")
            weight = Where()(there, weight, constant(neutral, "float64"))
            scores = ScatterElements(1, self.kind)(scores, target, weight)
            voted = ScatterElements(1, "max")(voted, target, Cast("int64")(there))
        result = Where()(Cast("bool")(voted), scores, constant(0.0, "float64"))
        return cast_to(result, dtype_name(self.weights.dtype))


def _at(table: Array, places: Value, dtype: str) -> Value:
    """The elements of a table at places that are data."""
    return Gather(0)(constant(table, dtype), places)


MOST_DEPTH = 64
"""Levels, votes and members that are written out one by one."""

_ASK: tuple[Callable[[Value, Value], Value], ...] = (
    lambda a, b: LessOrEqual()(a, b),
    lambda a, b: Less()(a, b),
    lambda a, b: LessOrEqual()(b, a),
    lambda a, b: Less()(b, a),
    lambda a, b: Equal()(a, b),
    lambda a, b: Not()(Equal()(a, b)),
)
"""_COMPARE on Values."""


@operator
class CoupleProbabilities(Op):
    """Class probabilities [N, K] from those of all pairs, p[n, i, j] = P(i given i or j).

    The second method of Wu, Lin and Weng, "Probability estimates for multi-class classification by
    pairwise coupling" (2004), with LIBSVM's stopping rule.
    """

    most_steps: ClassVar[int] = 100

    def infer(self, p: TensorType) -> TensorType:
        return p.with_shape(*p.shape[:2])

    def reference(self, p: Array) -> Array:
        return np.array([self._couple(r.astype(np.float64)) for r in p]).reshape(p.shape[:2])

    def _couple(self, r: Array) -> Array:
        k = len(r)
        np.fill_diagonal(r, 0)
        q = -r.T * r
        np.fill_diagonal(q, (r.T**2).sum(1))
        p = np.full(k, 1 / k)
        for _ in range(max(self.most_steps, k)):
            qp = q @ p
            if np.abs(qp - p @ qp).max() < 0.005 / k:
                break
            for t in range(k):
                step = (p @ qp - qp[t]) / q[t, t]
                p[t] += step
                qp = (qp + step * q[t]) / (1 + step)
                p /= 1 + step
        return p
