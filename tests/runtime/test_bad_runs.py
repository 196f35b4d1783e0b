"""Runs with data that the model cannot take: each gets an error that names the node, and the
session goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import whet
from tests.frontends.written import written
from whet.errors import (
    IndexOutOfRange,
    InvalidInput,
    InvalidModel,
    OutOfMemory,
    ShapeError,
    UnsupportedModel,
)

X = np.arange(12, dtype=np.float32).reshape(3, 4)
HUGE = 2**62


def opened(nodes: str, folder: Path | None = None, **inputs: np.ndarray) -> whet.Session:
    """A session for nodes that make y; through a file where a folder is given."""
    names = {"float32": "float", "int64": "int64"}
    given = ", ".join(
        f"{names[str(a.dtype)]}[{','.join(map(str, a.shape))}] {name}" for name, a in inputs.items()
    )
    engine = whet.build(written(f"g ({given}) => (float y) {{ {nodes} }}"))
    if folder is not None:
        engine.save(folder / "m.whet")
        engine = whet.load(folder / "m.whet")
    return engine.session(cache=False)


def ints(*numbers: Any) -> np.ndarray:
    return np.array(numbers, np.int64)


ROWS: list[tuple[str, dict[str, np.ndarray], dict[str, np.ndarray], type[Exception]]] = [
    ("y = Gather(x, i)", {"x": X, "i": ints(-3, 2)}, {"i": ints(0, 3)}, IndexOutOfRange),
    ("y = Gather(x, i)", {"x": X, "i": ints(-3, 2)}, {"i": ints(-4, 0)}, IndexOutOfRange),
    ("y = Gather(x, i)", {"x": X, "i": ints(-3, 2)}, {"i": ints(HUGE, 0)}, IndexOutOfRange),
    ("y = GatherND(x, i)", {"x": X, "i": ints([0, 3])}, {"i": ints([0, 4])}, IndexOutOfRange),
    (
        "y = ScatterND(x, i, u)",
        {"x": X, "i": ints([0, 3]), "u": np.ones(1, np.float32)},
        {"i": ints([3, 0])},
        IndexOutOfRange,
    ),
    (
        "y = ScatterElements<axis = 0>(x, i, u)",
        {"x": X, "i": ints([2, 0]), "u": np.ones((1, 2), np.float32)},
        {"i": ints([-4, 0])},
        IndexOutOfRange,
    ),
    ("y = Reshape(x, s)", {"x": X, "s": ints(4, -1)}, {"s": ints(5, 5)}, ShapeError),
    ("y = Reshape(x, s)", {"x": X, "s": ints(4, -1)}, {"s": ints(-2, 6)}, ShapeError),
    ("y = Reshape(x, s)", {"x": X, "s": ints(4, -1)}, {"s": ints(2**40, 2**40)}, OutOfMemory),
    # No size of the result is one of these: they must be looked at all the same.
    ("y = Expand(x, s)", {"x": X, "s": ints(3, 1)}, {"s": ints(5, 5)}, ShapeError),
    ("y = Expand(x, s)", {"x": X, "s": ints(3, 1)}, {"s": ints(3, 0)}, ShapeError),
    ("y = ConstantOfShape(s)", {"s": ints(2, 3)}, {"s": ints(-1, 4)}, ShapeError),
    ("y = ConstantOfShape(s)", {"s": ints(2, 3)}, {"s": ints(HUGE, 4)}, OutOfMemory),
    ("y = Tile(x, s)", {"x": X, "s": ints(2, 0)}, {"s": ints(-1, 1)}, ShapeError),
    ("y, i = TopK(x, k)", {"x": X, "k": ints(4)}, {"k": ints(5)}, ShapeError),
    ("y, z = Split(x, s)", {"x": X, "s": ints(1, 2)}, {"s": ints(2, 2)}, ShapeError),
    ("y = Pad(x, p)", {"x": X, "p": ints(1, 0, -1, 0)}, {"p": ints(-5, 0, 0, 0)}, ShapeError),
    (
        "y = Pad(x, p)",
        {"x": X, "p": ints(1, 0, -1, 0)},
        {"p": ints(2**63 - 1, 0, 1, 0)},
        OutOfMemory,
    ),
    ("y = Resize(x, , , s)", {"x": X, "s": ints(2, 8)}, {"s": ints(2, -1)}, UnsupportedModel),
    ("y = Resize(x, , , s)", {"x": X, "s": ints(2, 8)}, {"s": ints(2, 2**42)}, OutOfMemory),
    (
        'y = Resize<mode = "nearest">(x, , s)',
        {"x": X, "s": np.array([2, 1], np.float32)},
        {"s": np.array([0, 1], np.float32)},
        ShapeError,
    ),
    (
        'y = Resize<mode = "nearest">(x, , s)',
        {"x": X, "s": np.array([2, 1], np.float32)},
        {"s": np.array([np.nan, 1], np.float32)},
        ShapeError,
    ),
]


@pytest.mark.parametrize("nodes, good, bad, kind", ROWS)
@pytest.mark.parametrize("saved", [False, True])
def test_the_node_is_named_and_the_session_goes_on(
    nodes: str,
    good: dict[str, np.ndarray],
    bad: dict[str, np.ndarray],
    kind: type[Exception],
    saved: bool,
    tmp_path: Path,
) -> None:
    session = opened(nodes, tmp_path if saved else None, **good)
    before = session.run(good)["y"]
    with pytest.raises(
        kind, match='at node "y"' if kind is not OutOfMemory else "memory"
    ) as caught:
        session.run({**good, **bad})
    assert isinstance(caught.value, whet.Error)
    np.testing.assert_array_equal(session.run(good)["y"], before)


@pytest.mark.parametrize(
    "array",
    [
        X.astype(">f4"),
        np.asfortranarray(X),
        X[::-1][::-1],
        np.repeat(X, 2, 1)[:, ::2],
        np.frombuffer(X.tobytes(), np.float32).reshape(3, 4),
        np.ndarray((3, 4), np.float32, bytearray(b"\0" + X.tobytes()), 1),
    ],
    ids=["big-endian", "fortran", "reversed", "strided", "read-only", "unaligned"],
)
def test_the_same_numbers_in_other_memory(array: np.ndarray) -> None:
    session = opened("y = Neg(x)", x=X)
    np.testing.assert_array_equal(session.run({"x": array})["y"], -X)


@pytest.mark.parametrize(
    "inputs, says",
    [
        (X, "arrays by name"),
        (None, "arrays by name"),
        ([("x", X)], "arrays by name"),
        ({1: X}, "unknown: 1"),
        ({"x": X.astype(object)}, "must be float32, got object"),
        ({"x": None}, "must be an array of float32, got a NoneType"),
        ({"x": [[1.0, 2.0], [3.0]]}, "input 'x' is no array"),
        ({"x": X.astype("datetime64[s]")}, "must be float32, got datetime64"),
    ],
)
def test_what_is_no_input(inputs: Any, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        opened("y = Neg(x)", x=X).run(inputs)


class Elsewhere:
    """A tensor that cannot be handed over."""

    def __dlpack__(self, **_: Any) -> Any:
        raise BufferError("it is far away")

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


SEQUENCE, OPTIONAL = "seq(float)", "optional(float[2])"
ROW = np.ones((1, 2), np.float32)


@pytest.mark.parametrize(
    "kind, given, says",
    [
        (SEQUENCE, ROW, "must be a list of arrays, got ndarray"),
        (SEQUENCE, None, "must be a list of arrays, got NoneType"),
        (SEQUENCE, [ROW, ROW.astype(float)], r"'x'\[1\] must be float32, got float64"),
        (SEQUENCE, [ROW, "a"], r"'x'\[1\] must be float32, got string"),
        (OPTIONAL, np.ones(2), "must be float32, got float64"),
        (OPTIONAL, np.ones(3, np.float32), r"the shape \[3\]"),
        ("string[n]", [1, 2], "must be strings, got int"),
        ("string[n]", [None], "must be strings, got NoneType"),
        ("float[n]", Elsewhere(), "through DLPack: it is far away"),
    ],
)
def test_other_kinds_of_input_are_checked_too(kind: str, given: Any, says: str) -> None:
    model = written(f"g ({kind} x) => ({kind} y) {{ y = Identity(x) }}")
    with pytest.raises(InvalidInput, match=says):
        whet.session(model, cache=False).run({"x": given})


@pytest.mark.parametrize("kind, given", [(SEQUENCE, [ROW, ROW]), (OPTIONAL, None)])
def test_other_kinds_of_input(kind: str, given: Any) -> None:
    model = written(f"g ({kind} x) => ({kind} y) {{ y = Identity(x) }}")
    found = whet.session(model, cache=False).run({"x": given})["y"]
    assert (found is None) if given is None else np.array_equal(found, given)


def test_bytes_are_text() -> None:
    model = written("g (string[n] x) => (string[n] y) { y = Identity(x) }")
    (found,) = whet.session(model, cache=False).run({"x": np.array(["é".encode()])})["y"]
    assert found == "é"


def test_zero_elements() -> None:
    session = whet.session(
        written("g (float[n,4] x, float[4,2] w) => (float[n,2] y) { y = MatMul(x, w) }"),
        cache=False,
    )
    w = np.ones((4, 2), np.float32)
    for n in (3, 0, 1, 0):
        assert session.run({"x": np.ones((n, 4), np.float32), "w": w})["y"].shape == (n, 2)


@pytest.mark.parametrize(
    "nodes, inputs",
    [
        ("y, z = Split(x, s)", {"x": np.zeros(0, np.float32), "s": ints(0, 0)}),
        (
            "y = Reshape<allowzero = 1>(x, s)",
            {"x": np.zeros((0, 3, 4), np.float32), "s": ints(3, 4, 0)},
        ),
    ],
)
def test_sizes_that_can_only_be_zero(nodes: str, inputs: dict[str, np.ndarray]) -> None:
    assert opened(nodes, **inputs).run(inputs)["y"].size == 0


def test_an_output_of_another_element_type() -> None:
    with pytest.raises(InvalidModel, match="declares it as int64"):
        whet.build(written("g (float[2] x) => (int64[2] y) { y = Relu(x) }"))


def test_a_later_opset_is_said(caplog: pytest.LogCaptureFixture) -> None:
    model = written("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    model.opset_import[0].version = 99
    whet.build(model)
    assert "opset 99" in caplog.text
