"""Support vector machines of the ai.onnx.ml domain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from whet.errors import InvalidModel
from whet.frontends.onnx.families.ml import (
    as_float,
    binary,
    chosen,
    class_labels,
    linear,
    transformed,
)
from whet.frontends.onnx.registry import ml_op
from whet.ir.graph import Value, constant
from whet.ops import contract
from whet.ops import elementwise as ew
from whet.ops import movement as mv
from whet.ops import reduce as rd
from whet.ops.ml import CoupleProbabilities

Ints = tuple[int, ...]
Floats = tuple[float, ...]
Strings = tuple[str, ...]


@dataclass(frozen=True)
class Kernel:
    """How alike two rows of features are."""

    kind: str
    gamma: float = 0.0
    offset: float = 0.0
    degree: float = 0.0

    def __call__(self, x: Value, vectors: np.ndarray) -> Value:
        """The kernel of each row of x[N, F] with each support vector [S, F]: [N, S]."""
        if self.kind == "RBF":
            # Differences first: |x|^2 - 2xv + |v|^2 would cancel for rows that are nearly vectors.
            apart = mv.unsqueeze(x, 1) - constant(vectors, "float32")
            distance = mv.squeeze(rd.Reduce("sum", (2,))(apart * apart), 2)
            return ew.Exp()(distance * -self.gamma)
        product = contract.MatMul()(x, constant(vectors.T, "float32"))
        if self.kind == "LINEAR":
            return product
        scaled = product * self.gamma + self.offset
        if self.kind == "POLY":
            return ew.Pow()(scaled, ew.const_like(self.degree, scaled))
        if self.kind == "SIGMOID":
            return ew.Tanh()(scaled)
        raise InvalidModel(f"kernel_type {self.kind!r} is none of LINEAR, POLY, RBF, SIGMOID")


def _vectors(data: Floats, count: int) -> np.ndarray:
    if len(data) % count:
        raise InvalidModel(f"{len(data)} numbers do not make {count} support vectors")
    return np.array(data, np.float32).reshape(count, -1)


@ml_op
def SVMRegressor(
    x: Value,
    *,
    coefficients: Floats = (),
    kernel_params: Floats = (),
    kernel_type: str = "LINEAR",
    n_supports: int = 0,
    one_class: int = 0,
    post_transform: str = "NONE",
    rho: Floats = (0.0,),
    support_vectors: Floats = (),
) -> Value:
    if n_supports:
        alike = Kernel(kernel_type, *kernel_params)(
            as_float(x), _vectors(support_vectors, n_supports)
        )
        score = linear(alike, coefficients, rho[:1], 1)
    else:
        score = linear(x, coefficients, rho[:1], 1)
    if one_class:
        inside = ew.Less()(ew.const_like(0, score), score)
        return ew.Where()(inside, ew.const_like(1, score), ew.const_like(-1, score))
    return transformed(score, post_transform)


@dataclass(frozen=True)
class Machine:
    """One against one: a decision between the classes of every pair."""

    vectors: np.ndarray  # [S, F], those of the first class first
    counts: Ints  # support vectors of each class
    coefficients: np.ndarray  # [classes - 1, S]
    rho: Floats  # one for each pair

    @property
    def pairs(self) -> Iterator[tuple[int, int]]:
        classes = len(self.counts)
        return ((i, j) for i in range(classes) for j in range(i + 1, classes))

    def decisions(self, alike: Value) -> Value:
        """Above 0 where a pair's first class is the likelier: [N, pairs]."""
        ends = np.cumsum((0, *self.counts))
        columns = []
        for i, j in self.pairs:
            column = np.zeros(len(self.vectors), np.float32)
            column[ends[i] : ends[i + 1]] = self.coefficients[j - 1, ends[i] : ends[i + 1]]
            column[ends[j] : ends[j + 1]] = self.coefficients[i, ends[j] : ends[j + 1]]
            columns.append(column)
        weights = constant(np.stack(columns, 1))
        return contract.MatMul()(alike, weights) + constant(self.rho, "float32")

    def winner(self, decisions: Value) -> Value:
        """The class that wins the most pairs; of equal ones the first."""
        first = np.array([[i == c for c in range(len(self.counts))] for i, _ in self.pairs])
        second = np.array([[j == c for c in range(len(self.counts))] for _, j in self.pairs])
        ahead = mv.unsqueeze(ew.Less()(ew.const_like(0, decisions), decisions), 2)
        votes = ew.Where()(ahead, constant(first, "int64"), constant(second, "int64"))
        counts = mv.squeeze(rd.Reduce("sum", (1,))(votes), 1)
        return mv.squeeze(rd.ArgReduce("max", 1)(counts), 1)

    def probabilities(self, decisions: Value, a: Floats, b: Floats) -> Value:
        """Platt's probabilities of the pairs, coupled into those of the classes."""
        wins = ew.Sigmoid()(ew.Neg()(decisions * constant(a, "float32") + constant(b, "float32")))
        wins = ew.Clip()(wins, ew.const_like(1e-7, wins), ew.const_like(1 - 1e-7, wins))
        classes, pairs = len(self.counts), list(self.pairs)
        # All of wins, then all of 1 - wins: where each cell of the matrix lies in that row.
        where = np.zeros((classes, classes), np.int64)
        for place, (i, j) in enumerate(pairs):
            where[i, j], where[j, i] = place, place + len(pairs)
        both = mv.Concat(1)(wins, 1 - wins)
        return CoupleProbabilities()(mv.Gather(1)(both, constant(where)))


@ml_op
def SVMClassifier(
    x: Value,
    *,
    classlabels_ints: Ints = (),
    classlabels_strings: Strings = (),
    coefficients: Floats,
    kernel_params: Floats = (),
    kernel_type: str = "LINEAR",
    post_transform: str = "NONE",
    prob_a: Floats = (),
    prob_b: Floats = (),
    rho: Floats = (0.0,),
    support_vectors: Floats = (),
    vectors_per_class: Ints = (),
) -> tuple[Value, Value]:
    labels = class_labels(classlabels_ints, classlabels_strings)
    if not vectors_per_class:
        scores = linear(x, coefficients, (), len(labels)) + constant(rho[0], "float32")
        best = mv.squeeze(rd.ArgReduce("max", 1)(scores), 1)
        return chosen(labels, best), transformed(scores, post_transform)
    count = sum(vectors_per_class)
    weights = np.array(coefficients, np.float32).reshape(-1, count)
    machine = Machine(_vectors(support_vectors, count), vectors_per_class, weights, rho)
    alike = Kernel(kernel_type, *kernel_params)(as_float(x), machine.vectors)
    decisions = machine.decisions(alike)
    label = chosen(labels, machine.winner(decisions))
    if prob_a:
        scores = machine.probabilities(decisions, prob_a, prob_b)
        return label, transformed(scores, post_transform)
    if len(rho) == 1:
        return label, binary(decisions, labels, post_transform, post_transform == "NONE")[1]
    return label, transformed(decisions, post_transform)
