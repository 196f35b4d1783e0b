"""The ai.onnx.ml domain against ONNX Runtime, on random models."""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
import onnx.helper
import pytest
from onnx import TensorProto

from tests.frontends.written import assert_same, peer, run
from whet.errors import InvalidInput, UnsupportedModel
from whet.frontends.onnx import from_onnx

pytest.importorskip("onnxruntime")

SEED = secrets.randbits(32)
KERNEL = {"kernel_params": [0.5, 0.2, 3.0]}


def floats(*shape: int, scale: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng([SEED, *shape])
    return rng.uniform(-scale, scale, shape).astype(np.float32)


def flat(*shape: int, scale: float = 1.0) -> list[float]:
    return floats(*shape, scale=scale).ravel().tolist()


def model(operator: str, inputs: list[np.ndarray], outputs: int, attributes: dict[str, Any]) -> Any:
    """One node of the domain's first version that has the attributes."""
    names = [f"x{i}" for i in range(len(inputs))]
    results = [f"y{i}" for i in range(outputs)]
    node = onnx.helper.make_node(operator, names, results, domain="ai.onnx.ml", **attributes)
    given = [_info(name, x) for name, x in zip(names, inputs)]
    graph = onnx.helper.make_graph(
        [node], "g", given, [onnx.ValueInfoProto(name=r) for r in results]
    )
    opset = 2 if operator == "LabelEncoder" and "classes_strings" not in attributes else 1
    imports = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("ai.onnx.ml", opset)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=8)


def _info(name: str, x: np.ndarray) -> onnx.ValueInfoProto:
    kind = TensorProto.STRING
    if x.dtype != object:
        kind = onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
    return onnx.helper.make_tensor_value_info(name, kind, x.shape)


def agree(operator: str, inputs: list[np.ndarray], outputs: int = 1, **attributes: Any) -> None:
    print(f"seed {SEED}")
    proto = model(operator, inputs, outputs, attributes)
    given = {f"x{i}": x for i, x in enumerate(inputs)}
    assert_same(run(from_onnx(proto), given), peer(proto, given), 1e-4)


WORDS = np.array(["a", "b", "zz"], object)
MISSING = np.array([[1, np.nan, 3], [np.nan, 5, 6]], np.float32)
ENCODERS: list[tuple[str, list[np.ndarray], dict[str, Any]]] = [
    ("ArrayFeatureExtractor", [floats(3, 4), np.array([2, 0, 3])], {}),
    ("ArrayFeatureExtractor", [floats(4), np.array([[2, 0]])], {}),
    ("Binarizer", [floats(3, 4)], {"threshold": 0.3}),
    ("CategoryMapper", [WORDS], {"cats_strings": ["b", "a"], "cats_int64s": [4, 5]}),
    ("CategoryMapper", [np.array([4, 9])], {"cats_strings": ["b", "a"], "cats_int64s": [4, 5]}),
    ("FeatureVectorizer", [floats(2, 3), floats(2, 2)], {"inputdimensions": [2, 4]}),
    (
        "Imputer",
        [MISSING],
        {"imputed_value_floats": [7.0, 8.0, 9.0], "replaced_value_float": np.nan},
    ),
    ("Imputer", [np.array([[1, 0, 3]])], {"imputed_value_int64s": [7]}),
    ("LabelEncoder", [WORDS], {"classes_strings": ["b", "a"]}),
    ("LabelEncoder", [np.array([0, 1, 5])], {"classes_strings": ["b", "a"]}),
    ("LabelEncoder", [WORDS], {"keys_strings": ["b", "a"], "values_floats": [1.5, 2.5]}),
    ("Normalizer", [floats(3, 4)], {"norm": "MAX"}),
    ("Normalizer", [floats(3, 4)], {"norm": "L1"}),
    ("Normalizer", [np.zeros((3, 4), np.float32)], {"norm": "L2"}),
    ("OneHotEncoder", [WORDS], {"cats_strings": ["b", "a"]}),
    ("OneHotEncoder", [np.array([[1.2, 2]], np.float32)], {"cats_int64s": [1, 2, 3]}),
    ("Scaler", [floats(3, 4)], {"offset": flat(4), "scale": flat(4)}),
    ("Scaler", [np.array([[1, 2]])], {"offset": [1.0], "scale": [2.0]}),
]


@pytest.mark.parametrize("row", ENCODERS, ids=lambda row: row[0])
def test_encoders(row: tuple[str, list[np.ndarray], dict[str, Any]]) -> None:
    agree(row[0], row[1], **row[2])


TRANSFORMS = ["NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO", "PROBIT"]


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_linear(transform: str) -> None:
    x = floats(5, 4, scale=0.1)
    several = {
        "coefficients": flat(3, 4),
        "intercepts": [0.5, 0.4, 0.6],
        "post_transform": transform,
    }
    if transform == "PROBIT":  # ONNX Runtime's is an estimate
        assert_probit_inverts_the_normal_distribution(x, several)
        return
    agree("LinearRegressor", [x], targets=3, **several)
    agree("LinearClassifier", [x], 2, classlabels_ints=[5, 6, 7], **several)
    one = {"coefficients": flat(1, 4), "intercepts": [0.1], "post_transform": transform}
    agree("LinearClassifier", [x], 2, classlabels_strings=["u", "v"], **one)


def assert_probit_inverts_the_normal_distribution(
    x: np.ndarray, attributes: dict[str, Any]
) -> None:
    from statistics import NormalDist

    (y,) = run(from_onnx(model("LinearRegressor", [x], 1, {"targets": 3, **attributes})), {"x0": x})
    attributes["post_transform"] = "NONE"
    (p,) = run(from_onnx(model("LinearRegressor", [x], 1, {"targets": 3, **attributes})), {"x0": x})
    np.testing.assert_allclose(y, np.vectorize(NormalDist().inv_cdf)(p), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kernel", ["LINEAR", "POLY", "RBF", "SIGMOID"])
def test_support_vectors(kernel: str) -> None:
    shared = {"kernel_type": kernel, **KERNEL}
    vectors = {"coefficients": flat(7), "support_vectors": flat(7, 4), "n_supports": 7}
    for one_class in (0, 1):
        agree("SVMRegressor", [floats(6, 4)], rho=[0.3], one_class=one_class, **vectors, **shared)
    for labels, counts in (([3, 4], [3, 2]), ([3, 4, 5], [3, 2, 4])):
        classes, total, pairs = len(labels), sum(counts), len(labels) * (len(labels) - 1) // 2
        machine = {
            "coefficients": flat(classes - 1, total),
            "rho": flat(pairs),
            "support_vectors": flat(total, 4),
            "vectors_per_class": counts,
            "classlabels_ints": labels,
            **shared,
        }
        for transform in ("NONE", "LOGISTIC"):
            agree("SVMClassifier", [floats(9, 4)], 2, post_transform=transform, **machine)
        platt = {"prob_a": [-abs(a) for a in flat(pairs)], "prob_b": flat(pairs, scale=0.1)}
        agree("SVMClassifier", [floats(9, 4)], 2, **platt, **machine)


def forest(targets: int, prefix: str, positive: bool = False) -> dict[str, Any]:
    """Six complete trees of depth 3 over 5 features."""
    rng = np.random.default_rng(SEED)
    nodes: dict[str, list[Any]] = {name: [] for name in _NODES}
    votes: dict[str, list[Any]] = {name: [] for name in ("treeids", "nodeids", "ids", "weights")}
    for tree in range(6):
        mode = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT")[tree % 4]
        for i in range(15):
            leaf = i >= 7
            split = 0.0 if leaf else float(rng.normal())
            links = (0, 0) if leaf else (2 * i + 1, 2 * i + 2)
            row = (
                tree,
                i,
                rng.integers(5),
                "LEAF" if leaf else mode,
                split,
                *links,
                rng.integers(2),
            )
            for name, item in zip(_NODES, row):
                nodes[name].append(int(item) if isinstance(item, np.integer) else item)
            for target in range(targets) if leaf and tree % 2 else [i % targets] if leaf else []:
                weight = float(abs(rng.normal()) / 10 if positive else rng.normal())
                for name, item in zip(votes, (tree, i, target, weight)):
                    votes[name].append(item)
    return {**nodes, **{f"{prefix}_{name}": items for name, items in votes.items()}}


_NODES = (
    "nodes_treeids",
    "nodes_nodeids",
    "nodes_featureids",
    "nodes_modes",
    "nodes_values",
    "nodes_truenodeids",
    "nodes_falsenodeids",
    "nodes_missing_value_tracks_true",
)


def rows() -> np.ndarray:
    x = floats(20, 5, scale=2)
    return np.where(np.random.default_rng(SEED).random(x.shape) < 0.1, np.float32(np.nan), x)


@pytest.mark.parametrize("aggregate", ["SUM", "AVERAGE", "MIN", "MAX"])
@pytest.mark.parametrize("transform", TRANSFORMS[:3])
def test_tree_regression(aggregate: str, transform: str) -> None:
    attributes = {"aggregate_function": aggregate, "post_transform": transform}
    base = {"n_targets": 3, "base_values": [0.1, 0.2, 0.3]}
    agree("TreeEnsembleRegressor", [rows()], **forest(3, "target"), **base, **attributes)


@pytest.mark.parametrize("transform", TRANSFORMS[:4])
def test_tree_classification(transform: str) -> None:
    names = {"classlabels_strings": ["a", "b", "c"], "post_transform": transform}
    agree("TreeEnsembleClassifier", [rows()], 2, **forest(3, "class"), **names)
    for positive in (False, True):
        two = {"classlabels_int64s": [4, 5], "post_transform": transform, "base_values": [0.3]}
        agree("TreeEnsembleClassifier", [rows()], 2, **forest(1, "class", positive), **two)


def test_an_unknown_category_is_named() -> None:
    proto = model("OneHotEncoder", [WORDS], 1, {"cats_strings": ["a", "b"], "zeros": 0})
    with pytest.raises(InvalidInput, match="'zz'"):
        run(from_onnx(proto), {"x0": WORDS})


def test_maps_are_refused_with_advice() -> None:
    proto = model("ZipMap", [floats(2, 2)], 1, {"classlabels_strings": ["a", "b"]})
    with pytest.raises(UnsupportedModel, match="zipmap"):
        from_onnx(proto)
