"""ONNX Einsum: any equation, as diagonals, sums, matrix products and transposes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from whet.frontends.onnx.registry import Refused, onnx_op
from whet.ir.graph import Value
from whet.ir.sizes import Size, product
from whet.ops.contract import MatMul
from whet.ops.elementwise import require_equal
from whet.ops.movement import Pad, reshape, slice_axis, transpose
from whet.ops.reduce import Reduce

Labels = tuple[str, ...]


@dataclass(frozen=True)
class Term:
    """A tensor with a label for each axis; no label stands twice."""

    value: Value
    labels: Labels

    def size(self, label: str) -> Size:
        return self.value.shape[self.labels.index(label)]

    def summed(self, labels: Sequence[str]) -> Term:
        """Without the given axes, which are added up."""
        axes = tuple(self.labels.index(label) for label in labels)
        if not axes:
            return self
        kept = tuple(label for label in self.labels if label not in labels)
        total = Reduce("sum", axes)(self.value)
        return Term(reshape(total, *(self.size(label) for label in kept)), kept)

    def ordered(self, labels: Labels) -> Term:
        """With the axes in the order of the labels."""
        return Term(transpose(self.value, *map(self.labels.index, labels)), labels)

    def grouped(self, *groups: Labels) -> Value:
        """With the axes of each group as one axis; those of the first group stay apart."""
        turned = self.ordered(tuple(label for group in groups for label in group))
        lead = turned.value.shape[: len(groups[0])]
        sizes = (product(self.size(label) for label in group) for group in groups[1:])
        return reshape(turned.value, *lead, *sizes)


@onnx_op
def Einsum(*inputs: Value, equation: str) -> Value:
    terms, output = parse(equation, inputs)
    terms = [_without_diagonals(t.value, t.labels) for t in terms]
    terms = _without_stretched(terms)
    result = terms[0]
    for i, term in enumerate(terms[1:], 2):
        result = _product(result, term, _needed(terms[i:], output))
    result = result.summed([label for label in result.labels if label not in output])
    missing = [label for label in output if label not in result.labels]
    if missing:
        raise Refused(f"the output labels {missing} are in no input of {equation!r}")
    return result.ordered(output).value


def parse(equation: str, inputs: Sequence[Value]) -> tuple[list[Term], Labels]:
    """The labels of inputs and output; the axes of '...' are called "0", "1", … from the last."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    names = left.split(",")
    if len(names) != len(inputs):
        raise Refused(f"{equation!r} has {len(names)} terms for {len(inputs)} inputs")
    terms = [Term(x, _labels(name, x.rank, equation)) for name, x in zip(names, inputs)]
    used = [label for term in terms for label in term.labels]
    most = max((int(label) + 1 for label in used if label.isdigit()), default=0)
    batch = tuple(str(i) for i in reversed(range(most)))
    if not arrow:
        letters = (c for c in sorted(set(used)) if c.isalpha() and used.count(c) == 1)
        return terms, (*batch, *letters)
    before, dots, after = right.partition("...")
    output = (*before, *(batch if dots else ()), *after)
    if len(set(output)) != len(output):
        raise Refused(f"the output of {equation!r} names an axis twice")
    return terms, output


def _labels(name: str, rank: int, equation: str) -> Labels:
    before, dots, after = name.partition("...")
    named = len(before) + len(after)
    if named > rank or (not dots and named != rank):
        raise Refused(f"the term {name!r} of {equation!r} does not fit an input of {rank} axes")
    return (*before, *(str(i) for i in reversed(range(rank - named))), *after)


def _without_diagonals(x: Value, labels: Labels) -> Term:
    """The elements whose indices agree on every axis of the same label."""
    for label in dict.fromkeys(labels):
        while labels.count(label) > 1:
            first = labels.index(label)
            second = labels.index(label, first + 1)
            x = _diagonal(x, first, second)
            labels = (*labels[:first], *labels[first + 1 : second], *labels[second + 1 :], label)
    return Term(x, labels)


def _diagonal(x: Value, first: int, second: int) -> Value:
    """x[..., i, ..., i, ...] with that axis last."""
    size = require_equal(x.shape[first], x.shape[second], "axes of one label")
    rest = [i for i in range(x.rank) if i not in (first, second)]
    x = transpose(x, *rest, first, second)
    lead = x.shape[:-2]
    # With `size` more elements at the end, each row of size + 1 begins with one of the diagonal.
    flat = reshape(x, *lead, size * size)
    flat = Pad((0,) * flat.rank, (*(0,) * len(lead), size))(flat, 0)
    rows = reshape(flat, *lead, size, size + 1)
    return reshape(slice_axis(rows, -1, 0, 1), *lead, size)


def _without_stretched(terms: Sequence[Term]) -> list[Term]:
    """Without axes of size 1 that meet a longer one elsewhere; no multiplication needs them."""
    result = []
    for i, term in enumerate(terms):
        others = [t for j, t in enumerate(terms) if j != i]
        longer = {label for t in others for label in t.labels if t.size(label) != 1}
        drop = [label for label in term.labels if term.size(label) == 1 and label in longer]
        result.append(term.summed(drop))
    return result


def _needed(terms: Sequence[Term], output: Labels) -> frozenset[str]:
    return frozenset(output).union(*(t.labels for t in terms))


def _product(a: Term, b: Term, needed: frozenset[str]) -> Term:
    """Both terms in one: axes that nothing needs any more are added up."""
    a = a.summed([label for label in a.labels if label not in needed and label not in b.labels])
    b = b.summed([label for label in b.labels if label not in needed and label not in a.labels])
    for label in set(a.labels) & set(b.labels):
        require_equal(a.size(label), b.size(label), f"the sizes of the label {label}")
    inner = tuple(label for label in a.labels if label in b.labels and label not in needed)
    batch = tuple(label for label in a.labels if label in b.labels and label in needed)
    rows = tuple(label for label in a.labels if label not in b.labels)
    columns = tuple(label for label in b.labels if label not in a.labels)
    labels = (*batch, *rows, *columns)
    if not inner:
        return Term(_aligned(a, labels) * _aligned(b, labels), labels)
    y = MatMul()(a.grouped(batch, rows, inner), b.grouped(batch, inner, columns))
    sizes = [(a if label in a.labels else b).size(label) for label in labels]
    return Term(reshape(y, *sizes), labels)


def _aligned(term: Term, labels: Labels) -> Value:
    """The term with an axis for every label, of size 1 where it has none."""
    turned = term.ordered(tuple(label for label in labels if label in term.labels))
    sizes = (term.size(label) if label in term.labels else 1 for label in labels)
    return reshape(turned.value, *sizes)
