"""Operators that are proved to accept all sizes: no numbers may make them raise then."""

from __future__ import annotations

import secrets
from itertools import product
from typing import Any

import numpy as np
import pytest

from whet.errors import ShapeError
from whet.ir.graph import Op
from whet.ir.sizes import Size, minimum, substitute, symbol
from whet.ir.types import TensorType, map_sizes
from whet.ops.gather import GatherElements, GatherND
from whet.ops.index import Iota
from whet.ops.movement import Broadcast, Pad, Slice

SEED = secrets.randbits(32)
N, M = symbol("n", 1), symbol("m", 0, 6)
CHOICES: list[Size] = [0, 1, 2, 5, 6, N, M, N - 1, M - 1, N + 1, M + 2, minimum(N, 5), 6 - M]
INT = "int64"


def known(x: Any, sizes: dict[str, int]) -> Any:
    if isinstance(x, str):
        return x
    return tuple(known(i, sizes) for i in x) if isinstance(x, tuple) else substitute(x, sizes)


def drawn(rng: np.random.Generator) -> tuple[Op, list[TensorType]]:
    """An operator on two axes of any sizes, and the types of its inputs."""
    a, b, c, d = (CHOICES[i] for i in rng.integers(0, len(CHOICES), 4))
    x, other = TensorType(INT, (a, b)), TensorType(INT, (c, d))
    steps = tuple(int(s) for s in rng.choice([1, 1, 2, -1], 2))
    start = tuple(CHOICES[i] for i in rng.integers(0, len(CHOICES), 2))
    ways: list[tuple[Op, list[TensorType]]] = [
        (Slice((0, start[1]), (a, d), steps), [x]),
        (Slice(start, (c, d), steps), [x]),
        (Broadcast((c, b, d)), [TensorType(INT, (1, d))]),
        (Broadcast((c, d)), [x]),
        (GatherElements(1), [x, other]),
        (GatherND(1), [x, TensorType(INT, (c, 1))]),
        (Pad((a, b), (c, d)), [x, TensorType(INT, ())]),
        (Pad((0, c), (0, d), "edge"), [x, TensorType(INT, ())]),
        (Iota(a), []),
    ]
    return ways[rng.integers(len(ways))]


def test_what_is_proved_holds_for_all_numbers() -> None:
    print(f"the seed is {SEED}")
    rng, proved = np.random.default_rng(SEED), 0
    for _ in range(1500):
        op, kinds = drawn(rng)
        if not op.accepts_all(*kinds):
            continue
        proved += 1
        for n, m in product(range(1, 9), range(7)):
            sizes = {"n": n, "m": m}
            numbers = [
                map_sizes(kind, lambda size, at=sizes: substitute(size, at)) for kind in kinds
            ]  # type: ignore[misc]
            if any(s < 0 for kind in numbers for s in kind.shape):  # type: ignore[union-attr]
                continue  # no tensor is like that
            attributes = {name: known(x, sizes) for name, x in op.attributes.items()}
            type(op)(**attributes).infer(*numbers)
    assert proved > 100


@pytest.mark.parametrize(
    ("op", "shape", "is_proved"),
    [
        (Slice((0, 2), (N, 3), (1, 1)), (N, 5), True),
        (Slice((0, 2), (N, M), (1, 1)), (N, 5), False),
        (Slice((0,), (minimum(N, 5),), (1,)), (5,), True),
        (Slice((0,), (N,), (1,)), (5,), False),
        (Slice((0,), (5,), (1,)), (M,), False),
        (Broadcast((N, M)), (1, M), True),
        (Broadcast((N, M)), (M,), True),
        (Broadcast((N, M)), (N, N), False),
    ],
)
def test_what_is_proved(op: Op, shape: tuple[Size, ...], is_proved: bool) -> None:
    x = TensorType(INT, shape)
    assert op.accepts_all(x) is is_proved
    if not is_proved:
        at = {"n": 6, "m": 6}
        numbers = {name: known(found, at) for name, found in op.attributes.items()}
        with pytest.raises(ShapeError):
            type(op)(**numbers).infer(TensorType(INT, known((4,) * len(shape), at)))


@pytest.mark.parametrize("mode", ["edge", "reflect", "wrap"])
def test_an_axis_of_no_elements_repeats_none(mode: str) -> None:
    x, fill = TensorType(INT, (0, 3)), TensorType(INT, ())
    assert Pad((0, 1), (0, 2), mode).infer(x, fill).shape == (0, 6)
    with pytest.raises(ShapeError, match="no elements"):
        Pad((1, 0), (0, 0), mode).infer(x, fill)
