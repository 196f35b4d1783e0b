"""Axes that a reshape maps onto each other."""

from __future__ import annotations

import pytest

from whet.ir.sizes import Size, symbol
from whet.passes.axes import groups
from whet.passes.unmerge import refined

N = symbol("n")


@pytest.mark.parametrize(
    "a, b, wanted",
    [
        ((2, 3, 4), (6, 4), [([0, 1], [0]), ([2], [1])]),
        ((N, 3, 4), (N, 12), [([0], [0]), ([1, 2], [1])]),
        ((N, 0), (0,), None),
        ((0,), (N, 0), None),
    ],
)
def test_groups(a: tuple[Size, ...], b: tuple[Size, ...], wanted: object) -> None:
    assert groups(a, b) == wanted


def test_nothing_is_split_into_no_elements() -> None:
    assert refined((N, 6), (N, 2, 3)) == (N, 2, 3)
    assert refined((N, 0), (0, 3)) is None
