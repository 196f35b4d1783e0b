"""Tree ensembles of the ai.onnx.ml domain."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from whet.errors import InvalidModel
from whet.frontends.onnx.families.ml import binary, chosen, class_labels, transformed
from whet.frontends.onnx.model import Tensor
from whet.frontends.onnx.registry import ml_op
from whet.ir.graph import Value, constant
from whet.ops import movement as mv
from whet.ops import reduce as rd
from whet.ops.ml import MEMBER, Forest

Ints = tuple[int, ...]
Floats = tuple[float, ...]
Strings = tuple[str, ...]

MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")
AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")
TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")


def aggregated(x: Value, forest: Forest, kind: str, base: np.ndarray) -> Value:
    """The votes, averaged over the trees where asked for, plus the base values."""
    scores = forest(x)
    if kind == "AVERAGE":
        scores = scores / len(forest.roots)
    return scores + constant(base, scores.dtype) if len(base) else scores


def kind_of(aggregate: str) -> str:
    if aggregate not in AGGREGATES:
        raise InvalidModel(f"aggregate_function {aggregate!r} is none of {', '.join(AGGREGATES)}")
    return {"MIN": "min", "MAX": "max"}.get(aggregate, "sum")


@ml_op
def TreeEnsemble(
    x: Value,
    *,
    aggregate_function: int = 1,
    leaf_targetids: Ints,
    leaf_weights: Tensor,
    membership_values: Tensor | None = None,
    n_targets: int = 1,
    nodes_falseleafs: Ints,
    nodes_falsenodeids: Ints,
    nodes_featureids: Ints,
    nodes_hitrates: Tensor | None = None,
    nodes_missing_value_tracks_true: Ints = (),
    nodes_modes: Tensor,
    nodes_splits: Tensor,
    nodes_trueleafs: Ints,
    nodes_truenodeids: Ints,
    post_transform: int = 0,
    tree_roots: Ints,
) -> Value:
    modes = nodes_modes.read().astype(np.int64)
    aggregate = AGGREGATES[aggregate_function]
    forest = Forest(
        kind_of(aggregate),
        n_targets,
        roots=np.array(tree_roots, np.int64),
        features=np.array(nodes_featureids, np.int64),
        modes=modes,
        splits=nodes_splits.read(),
        yes=_children(nodes_truenodeids, nodes_trueleafs),
        no=_children(nodes_falsenodeids, nodes_falseleafs),
        missing=_flags(nodes_missing_value_tracks_true, len(modes)),
        members=_member_rows(modes, membership_values),
        begins=np.arange(len(leaf_targetids) + 1),
        voted=np.array(leaf_targetids, np.int64),
        weights=leaf_weights.read(),
    )
    checked(forest)
    return transformed(aggregated(x, forest, aggregate, np.zeros(0)), TRANSFORMS[post_transform])


def _children(ids: Ints, are_leaves: Ints) -> np.ndarray:
    places, leaf = np.array(ids, np.int64), np.array(are_leaves, bool)
    return np.where(leaf, ~places, places)


def _flags(data: Ints, count: int) -> np.ndarray:
    return np.array(data, bool) if data else np.zeros(count, bool)


def _member_rows(modes: np.ndarray, values: Tensor | None) -> np.ndarray:
    """Each member node's set as a row, filled up with NaN; the file separates the sets by NaN."""
    data = np.zeros(0) if values is None else values.read()
    sets: list[list[float]] = [[]]
    for value in data.tolist():
        if value != value:
            sets.append([])
        else:
            sets[-1].append(value)
    nodes = np.flatnonzero(modes == MEMBER)
    if len(nodes) > len(sets):
        raise InvalidModel(f"{len(nodes)} nodes test membership, {len(sets)} sets are given")
    rows = np.full((len(modes), max(map(len, sets))), np.nan, data.dtype)
    for node, members in zip(nodes, sets):
        rows[node, : len(members)] = members
    return rows


def checked(forest: Forest) -> None:
    """Raises InvalidModel where a forest's tables refer to what they do not have."""
    nodes, leaves = len(forest.features), len(forest.begins) - 1
    per_node = (forest.modes, forest.splits, forest.yes, forest.no, forest.missing)
    if any(len(table) != nodes for table in per_node):
        raise InvalidModel("the nodes_* attributes of the trees differ in length")
    for places in (forest.roots, forest.yes, forest.no):
        if (places >= nodes).any() or (~places >= leaves).any():
            raise InvalidModel("a tree refers to a node or a leaf that does not exist")
    if (forest.features < 0).any() or len(forest.weights) != len(forest.voted):
        raise InvalidModel("a tree has negative features, or votes without weights")
    if ((forest.voted < 0) | (forest.voted >= forest.targets)).any():
        raise InvalidModel(f"a leaf votes for none of the {forest.targets} targets")


@dataclass(frozen=True)
class Listing:
    """A forest's nodes as the first versions of the domain list them, and the leaves' votes."""

    features: Ints
    modes: Strings
    splits: np.ndarray
    trees: Ints
    ids: Ints
    yes: Ints
    no: Ints
    missing: Ints
    votes: dict[tuple[int, int], list[tuple[int, float]]] = field(default_factory=dict)

    def forest(self, kind: str, targets: int, dtype: type) -> Forest:
        place, leaves = self._places()
        inner = [i for i, mode in enumerate(self.modes) if mode != "LEAF"]
        links = ((self.trees[i], child[i]) for child in (self.yes, self.no) for i in inner)
        children = {place.get(link) for link in links}
        if None in children:
            raise InvalidModel("a tree refers to a node that does not exist")
        votes = [self.votes.get(leaf, []) for leaf in leaves]
        flat = [vote for leaf in votes for vote in leaf]
        forest = Forest(
            kind,
            targets,
            roots=np.array([p for p in place.values() if p not in children], np.int64),
            features=np.array([self.features[i] for i in inner], np.int64),
            modes=np.array([_mode(self.modes[i]) for i in inner], np.int64),
            splits=self.splits[inner] if len(inner) else self.splits[:0],
            yes=np.array([place[self.trees[i], self.yes[i]] for i in inner], np.int64),
            no=np.array([place[self.trees[i], self.no[i]] for i in inner], np.int64),
            missing=_flags(self.missing, len(self.modes))[inner] if inner else np.zeros(0, bool),
            members=np.zeros((len(inner), 0), dtype),
            begins=np.cumsum([0, *map(len, votes)]),
            voted=np.array([target for target, _ in flat], np.int64),
            weights=np.array([weight for _, weight in flat], dtype),
        )
        checked(forest)
        return forest

    def _places(self) -> tuple[dict[tuple[int, int], int], list[tuple[int, int]]]:
        """Where each (tree, node) stands among the inner nodes, or ~ among the leaves, listed."""
        lengths = {len(self.trees), len(self.ids), len(self.modes), len(self.features)}
        if len(lengths | {len(self.splits), len(self.yes), len(self.no)}) != 1:
            raise InvalidModel("the nodes_* attributes of the trees differ in length")
        place: dict[tuple[int, int], int] = {}
        leaves: list[tuple[int, int]] = []
        inner = 0
        for key, mode in zip(zip(self.trees, self.ids), self.modes):
            if mode == "LEAF":
                place[key] = ~len(leaves)
                leaves.append(key)
            else:
                place[key], inner = inner, inner + 1
        return place, leaves


def _mode(name: str) -> int:
    if name not in MODES:
        raise InvalidModel(f"a tree's node has the mode {name!r}")
    return MODES.index(name)


def _votes(
    trees: Ints, nodes: Ints, targets: Ints, weights: np.ndarray
) -> dict[tuple[int, int], list[tuple[int, float]]]:
    votes = defaultdict(list)
    for tree, node, target, weight in zip(trees, nodes, targets, weights.tolist(), strict=True):
        votes[tree, node].append((target, weight))
    return votes


def _numbers(floats: Floats, tensor: Tensor | None) -> np.ndarray:
    return np.array(floats, np.float32) if tensor is None else tensor.read().ravel()


@ml_op
def TreeEnsembleRegressor(
    x: Value,
    *,
    aggregate_function: str = "SUM",
    base_values: Floats = (),
    base_values_as_tensor: Tensor | None = None,
    n_targets: int = 1,
    nodes_falsenodeids: Ints,
    nodes_featureids: Ints,
    nodes_hitrates: Floats = (),
    nodes_hitrates_as_tensor: Tensor | None = None,
    nodes_missing_value_tracks_true: Ints = (),
    nodes_modes: Strings,
    nodes_nodeids: Ints,
    nodes_treeids: Ints,
    nodes_truenodeids: Ints,
    nodes_values: Floats = (),
    nodes_values_as_tensor: Tensor | None = None,
    post_transform: str = "NONE",
    target_ids: Ints,
    target_nodeids: Ints,
    target_treeids: Ints,
    target_weights: Floats = (),
    target_weights_as_tensor: Tensor | None = None,
) -> Value:
    weights = _numbers(target_weights, target_weights_as_tensor)
    listing = Listing(
        nodes_featureids,
        nodes_modes,
        _numbers(nodes_values, nodes_values_as_tensor),
        nodes_treeids,
        nodes_nodeids,
        nodes_truenodeids,
        nodes_falsenodeids,
        nodes_missing_value_tracks_true,
        _votes(target_treeids, target_nodeids, target_ids, weights),
    )
    forest = listing.forest(kind_of(aggregate_function), n_targets, np.float32)
    base = _numbers(base_values, base_values_as_tensor)
    return transformed(aggregated(x, forest, aggregate_function, base), post_transform)


@ml_op
def TreeEnsembleClassifier(
    x: Value,
    *,
    base_values: Floats = (),
    base_values_as_tensor: Tensor | None = None,
    class_ids: Ints,
    class_nodeids: Ints,
    class_treeids: Ints,
    class_weights: Floats = (),
    class_weights_as_tensor: Tensor | None = None,
    classlabels_int64s: Ints = (),
    classlabels_strings: Strings = (),
    nodes_falsenodeids: Ints,
    nodes_featureids: Ints,
    nodes_hitrates: Floats = (),
    nodes_hitrates_as_tensor: Tensor | None = None,
    nodes_missing_value_tracks_true: Ints = (),
    nodes_modes: Strings,
    nodes_nodeids: Ints,
    nodes_treeids: Ints,
    nodes_truenodeids: Ints,
    nodes_values: Floats = (),
    nodes_values_as_tensor: Tensor | None = None,
    post_transform: str = "NONE",
) -> tuple[Value, Value]:
    weights = _numbers(class_weights, class_weights_as_tensor)
    labels = class_labels(classlabels_int64s, classlabels_strings)
    # One class of two has all the votes: they are the score of the second class.
    is_binary = len(labels) == 2 and len(set(class_ids)) == 1
    classes = (0,) * len(class_ids) if is_binary else class_ids
    listing = Listing(
        nodes_featureids,
        nodes_modes,
        _numbers(nodes_values, nodes_values_as_tensor),
        nodes_treeids,
        nodes_nodeids,
        nodes_truenodeids,
        nodes_falsenodeids,
        nodes_missing_value_tracks_true,
        _votes(class_treeids, class_nodeids, classes, weights),
    )
    forest = listing.forest("sum", 1 if is_binary else len(labels), np.float32)
    base = _numbers(base_values, base_values_as_tensor)
    scores = aggregated(x, forest, "SUM", base[-1:] if is_binary else base)
    if is_binary:
        mixed = bool((weights < 0).any())
        return binary(scores, labels, post_transform, mixed, 0.0 if mixed else 0.5)
    best = mv.squeeze(rd.ArgReduce("max", 1)(scores), 1)
    return chosen(labels, best), transformed(scores, post_transform)
