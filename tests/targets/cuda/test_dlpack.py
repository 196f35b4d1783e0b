"""What DLPack's fields say of a tensor, without a GPU."""

from __future__ import annotations

import struct

import pytest

from whet.errors import InvalidInput
from whet.targets.cuda import dlpack


def layout(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a float32 tensor with such fields."""
    extents, steps = (struct.pack(f"={len(line)}q", *line) for line in (shape, strides))
    return dlpack._layout(dlpack.CODES["f"], 32, 1, extents, steps, "x")[1]


@pytest.mark.parametrize(
    "shape, strides",
    [
        ((2, 3), (3, 1)),
        ((2, 1, 3), (3, 7, 1)),
        # As PyTorch gives them.
        ((3, 0), (1, 1)),
        ((2, 0, 3), (3, 3, 1)),
        ((0, 3), (3, 1)),
    ],
)
def test_dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    assert layout(shape, strides) == shape


@pytest.mark.parametrize("strides", [(1, 2), (4, 1), (3, -1)])
def test_elements_that_lie_apart_are_refused(strides: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match=r"contiguous"):
        layout((2, 3), strides)
