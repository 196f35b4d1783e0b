"""Random numbers. Without a seed each draw is new; a seed gives the same numbers in every run."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np

from whet.ir.graph import Op, Token, operator
from whet.ir.sizes import Size
from whet.ir.types import TensorType
from whet.ops.elementwise import FLOATS, Array, need


@operator
class Random(Op):
    """Independent draws: "uniform" in [0, 1), or "normal" with mean 0 and deviation 1.

    Each draw without a seed carries its own token, so that no two of them are merged.
    """

    kind: Annotated[str, Literal["uniform", "normal"]]
    shape: tuple[Size, ...]
    dtype: str = "float32"
    seed: int | None = None
    token: Token | None = None
    has_effect: ClassVar[bool] = True

    def infer(self) -> TensorType:
        need(self.dtype, FLOATS, "a floating-point dtype")
        return TensorType(self.dtype, self.shape)

    def reference(self) -> Array:
        # The seeded stream is NumPy's frozen one: it never changes from version to version.
        seeded = np.random.RandomState(None if self.seed is None else self.seed % 2**32)
        if self.kind == "normal":
            return seeded.standard_normal(self.shape).astype(self.dtype)
        uniform = seeded.random_sample(self.shape)
        # Cut off to 24 bits, which float32 holds: rounding could reach 1.
        return uniform if self.dtype == "float64" else np.floor(uniform * 2**24) / 2**24
