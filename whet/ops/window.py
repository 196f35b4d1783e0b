"""Operators that combine the elements under a sliding window: pooling, channels last."""

from __future__ import annotations

import numpy as np

from whet.errors import ShapeError
from whet.ir.graph import Op, operator
from whet.ir.sizes import Size
from whet.ir.types import TensorType


@operator
class Pool(Op):
    """`kind` ("max", "sum") over windows of x[N, *S, C]; `shape` is the spatial shape of the result.

    Elements outside x do not take part. A window that sees none gives the kind's identity.
    """

    kind: str
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[Size, ...]
    shape: tuple[Size, ...]

    def infer(self, x: TensorType) -> TensorType:
        if x.rank != len(self.kernel) + 2:
            raise ShapeError(f"pooling over {len(self.kernel)} axes does not fit {x}")
        return x.with_shape(x.shape[0], *self.shape, x.shape[-1])

    def reference(self, x):
        from whet.ops.reduce import identity

        fill = identity(self.kind, x.dtype)
        pads = [(0, 0)]
        for size, k, s, d, b, out in zip(
            x.shape[1:-1], self.kernel, self.strides, self.dilations, self.before, self.shape
        ):
            pads.append((b, max(0, (out - 1) * s + (k - 1) * d + 1 - size - b)))
        padded = np.pad(x, [*pads, (0, 0)], constant_values=fill)
        spans = [(k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations)]
        windows = np.lib.stride_tricks.sliding_window_view(
            padded, spans, tuple(range(1, x.ndim - 1))
        )
        steps = tuple(slice(0, (out - 1) * s + 1, s) for s, out in zip(self.strides, self.shape))
        taps = tuple(slice(None, None, d) for d in self.dilations)
        windows = windows[(slice(None), *steps, slice(None), *taps)]
        axes = tuple(range(x.ndim, windows.ndim))
        if self.kind == "max":
            return windows.max(axes)
        wide = np.float32 if x.dtype.kind not in "iufb" or x.dtype == np.float16 else x.dtype
        return windows.sum(axes, dtype=wide).astype(x.dtype)
