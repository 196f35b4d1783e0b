"""How a kernel wants its weights laid out, as data: a generated kernel or NumPy can follow it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Packing:
    """packed = transpose(reshape(pad(reshape(weight, shape), padded), split), order).

    `weight` is channels-last, [filters, *kernel, channels // groups]; padding adds zeros at the
    end of axes, up to the sizes `padded`. Before all that, an axis of the weight is multiplied by
    each matrix of `matrices`: new[i] = sum of matrix[i][j] * old[j].
    """

    shape: tuple[int, ...]
    padded: tuple[int, ...]
    split: tuple[int, ...]
    order: tuple[int, ...]
    matrices: tuple[tuple[int, tuple[tuple[float, ...], ...]], ...] = ()

    @property
    def packed_shape(self) -> tuple[int, ...]:
        return tuple(self.split[axis] for axis in self.order)

    def apply(self, weight: NDArray[Any]) -> NDArray[Any]:
        """The packed weight, contiguous."""
        for axis, matrix in self.matrices:
            product = np.tensordot(np.array(matrix), weight, (1, axis))
            weight = np.moveaxis(product, 0, axis)
        weight = weight.astype(np.float32)
        pads = [(0, more - size) for size, more in zip(self.shape, self.padded)]
        wide = np.pad(weight.reshape(self.shape), pads).reshape(self.split)
        return np.ascontiguousarray(wide.transpose(self.order))
