"""NonZero, Unique, TopK, NonMaxSuppression and Compress, judged by ONNX Runtime on random
inputs."""

from __future__ import annotations

import secrets

import ml_dtypes
import numpy as np
import pytest

from tests.frontends.written import agree, assert_same, read, run
from whet.errors import ShapeError, TypeMismatch
from whet.ir.evaluate import evaluate
from whet.ir.graph import Graph, constant
from whet.ops import select

SEED = secrets.randbits(32)
NAMES = {"float32": "float", "float64": "double"}


@pytest.fixture
def rng() -> np.random.Generator:
    print("seed", SEED)
    return np.random.default_rng(SEED)


def few(rng: np.random.Generator, dtype: str, *shape: int) -> np.ndarray:
    """Elements of which many are equal, and some 0."""
    return rng.integers(0, 4, shape).astype(dtype)


def of(node: str, inputs: str, outputs: str) -> str:
    return f"g ({inputs}) => ({outputs}) {{ {node} }}"


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "uint8"])
@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 2), (0, 3), (1,)])
def test_nonzero(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> None:
    axes = ",".join("NMK"[: len(shape)])
    text = of("i = NonZero(x)", f"{NAMES.get(dtype, dtype)}[{axes}] x", "int64[A,B] i")
    agree(text, {"x": few(rng, dtype, *shape)}, late=False)


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_compress(rng: np.random.Generator, axis: int | None) -> None:
    attribute = "" if axis is None else f"<axis = {axis}>"
    shape = "A" if axis is None else "A,B"
    text = of(f"y = Compress{attribute}(x, c)", "float[N,M] x, bool[K] c", f"float[{shape}] y")
    given = {"x": rng.standard_normal((4, 5)).astype(np.float32)}
    for length in (1, 3, 4):
        agree(text, {"c": rng.integers(0, 2, length).astype(bool), **given}, late=False)


@pytest.mark.parametrize("ascending", [0, 1])
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize("dtype", ["float32", "int64", "int8", "float64"])
def test_unique(rng: np.random.Generator, dtype: str, axis: int | None, ascending: int) -> None:
    attributes = f"sorted = {ascending}" + ("" if axis is None else f", axis = {axis}")
    kind, shape = NAMES.get(dtype, dtype), "A" if axis is None else "A,B"
    outputs = f"{kind}[{shape}] y, int64[C] i, int64[D] w, int64[C] c"
    text = of(f"y, i, w, c = Unique<{attributes}>(x)", f"{kind}[N,M] x", outputs)
    agree(text, *({"x": few(rng, dtype, 6, m)} for m in (2, 1, 3)), late=False)


def test_unique_of_strings() -> None:
    outputs = "string[A] y, int64[C] i, int64[D] w, int64[C] c"
    given = {"x": np.array(["b", "a", "b", "", "c", "a"], object)}
    for ascending in (0, 1):
        node = f"y, i, w, c = Unique<sorted = {ascending}>(x)"
        agree(of(node, "string[N] x", outputs), given, late=False)


@pytest.mark.parametrize(
    "shape, axis, kept",
    [((0,), None, (0,)), ((0, 3), 0, (0, 3)), ((3, 0), 0, (1, 0)), ((0, 3), 1, (0, 1))],
)
def test_unique_of_nothing(shape: tuple[int, ...], axis: int | None, kept: tuple[int, ...]) -> None:
    """Lines without elements are all the same."""
    y, first, which, counts = select.Unique(0, axis).reference(np.zeros(shape, np.float32))
    assert y.shape == kept
    assert first.size == counts.size == kept[axis or 0]
    assert which.size == counts.sum() == shape[axis or 0]


def test_unique_of_what_numpy_cannot_sort_by_rows() -> None:
    x = np.array([[1, 2], [0, 5], [1, 2]], ml_dtypes.bfloat16)
    values = select.Unique(2, 0)(constant(x))
    y, first, which, counts = evaluate(Graph((), values), {})
    assert y.tolist() == [[0, 5], [1, 2]] and first.tolist() == [1, 0]
    assert which.tolist() == [1, 0, 1] and counts.tolist() == [1, 2]


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("dtype", ["float32", "int64", "int32", "float64"])
def test_top_k(rng: np.random.Generator, dtype: str, axis: int, largest: int) -> None:
    """Of equal elements the first; K as an initializer and as data."""
    kind = NAMES.get(dtype, dtype)
    node = f"y, i = TopK<axis = {axis}, largest = {largest}>(x, k)"
    outputs = f"{kind}[A,B] y, int64[A,B] i"
    given = few(rng, dtype, 6, 5)
    for k in (0, 1, 3, 5):
        late = agree(
            of(node, f"{kind}[N,M] x, int64[1] k", outputs),
            {"x": given, "k": np.array([k])},
            late=False,
        )
        assert late.graph.definers
        fixed = of(node, f"{kind}[N,M] x", outputs).replace("{", f"<int64[1] k = {{{k}}}> {{", 1)
        agree(fixed, {"x": given}, late=False)


def test_top_k_of_old_opsets(rng: np.random.Generator) -> None:
    x = rng.standard_normal((3, 7)).astype(np.float32)
    order = np.argsort(-x, 1, kind="stable")[:, :4]
    node = "y, i = TopK<axis = 1, k = 4>(x)"
    outputs = "float[A,B] y, int64[A,B] i"
    got = run(read(of(node, "float[N,M] x", outputs), 9), {"x": x})
    assert_same(got, [np.take_along_axis(x, order, 1), order])
    node = "y, i = TopK<axis = 1>(x, k)"
    got = run(read(of(node, "float[N,M] x, int64[1] k", outputs), 10), {"x": x, "k": np.array([4])})
    assert_same(got, [np.take_along_axis(x, order, 1), order])


def test_more_than_there_are(rng: np.random.Generator) -> None:
    text = of("y, i = TopK(x, k)", "float[N] x, int64[1] k", "float[A] y, int64[A] i")
    with pytest.raises(ShapeError, match="the best 4 of an axis of 3"):
        run(read(text), {"x": np.ones(3, np.float32), "k": np.array([4])})
    with pytest.raises(ShapeError, match="the best 4 of an axis of 3"):
        read(
            of("y, i = TopK(x, k)", "float[3] x", "float[A] y, int64[A] i").replace(
                "{", "<int64[1] k = {4}> {", 1
            )
        )


BOXES = "float[B,N,4] boxes, float[B,C,N] scores, int64[1] most, float[1] overlap, float[1] score"


@pytest.mark.parametrize("center", [0, 1])
@pytest.mark.parametrize("inputs", [3, 4, 5])
def test_non_max_suppression(rng: np.random.Generator, center: int, inputs: int) -> None:
    names = ", ".join(["boxes", "scores", "most", "overlap", "score"][:inputs])
    node = f"y = NonMaxSuppression<center_point_box = {center}>({names})"
    declared = ", ".join(BOXES.split(", ")[:inputs])
    for most in (0, 1, 3, 100):
        corners = np.sort(rng.uniform(0, 1, (2, 12, 2, 2)), 2).reshape(2, 12, 4)
        flipped = corners[..., [2, 3, 0, 1]]
        boxes = np.where(rng.integers(0, 2, (2, 12, 1)), corners, flipped)
        if center:
            boxes = np.concatenate([boxes[..., :2], np.abs(boxes[..., 2:])], -1)
        given = {
            "boxes": boxes.astype(np.float32),
            "scores": rng.uniform(0, 1, (2, 3, 12)).astype(np.float32),
            "most": np.array([most]),
            "overlap": np.array([rng.uniform(0.1, 0.7)], np.float32),
            "score": np.array([0.4], np.float32),
        }
        given = {name: given[name] for name in names.split(", ")}
        agree(of(node, declared, "int64[A,K] y"), given, late=False)


def test_boxes_without_area(rng: np.random.Generator) -> None:
    """They overlap nothing, not even themselves."""
    text = of(
        "y = NonMaxSuppression(boxes, scores, most, overlap)",
        ", ".join(BOXES.split(", ")[:4]),
        "int64[A,K] y",
    )
    given = {
        "boxes": np.array([[[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]], np.float32),
        "scores": np.array([[[0.9, 0.8, 0.7, 0.6]]], np.float32),
        "most": np.array([9]),
        "overlap": np.array([0.5], np.float32),
    }
    agree(text, given, late=False)


def test_boxes_that_do_not_fit() -> None:
    node = "y = NonMaxSuppression(boxes, scores)"
    with pytest.raises(ShapeError, match="and 4 must be equal"):
        read(of(node, "float[1,5,3] boxes, float[1,1,5] scores", "int64[A,K] y"))
    with pytest.raises(ShapeError, match="numbers of boxes"):
        read(of(node, "float[1,5,4] boxes, float[1,1,6] scores", "int64[A,K] y"))
    with pytest.raises(TypeMismatch, match="float32 boxes"):
        read(of(node, "double[1,5,4] boxes, double[1,1,5] scores", "int64[A,K] y"))


def test_an_extent_is_a_size() -> None:
    """Its elements take no memory, and it is never negative."""
    op = select.Extent(3)
    assert op.reference(np.array([2**40])).strides == (0,)
    with pytest.raises(ShapeError, match="negative: -1"):
        op.reference(np.array(-1))
    with pytest.raises(TypeMismatch, match="an integer"):
        op(constant(1.5, "float32"))
