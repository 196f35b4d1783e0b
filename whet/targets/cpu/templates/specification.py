"""What a convolution computes, free of how: sizes, paddings and where its tensors lie."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from whet.errors import ShapeError

Extent = Any
"""A number, or an expression over named sizes, which a run tells the kernel."""


@dataclass(frozen=True)
class Convolution:
    """A float32 convolution over channels-last tensors with 1 to 3 spatial axes.

    x[batch, *size, channels], weight[filters, *kernel, channels // groups] and
    y[batch, *outputs, filters]. Strides of x and y count elements, in the order (batch, *spatial,
    channel); empty ones mean contiguous. Channels of y, of bias and of the weight are adjacent.
    A run may tell the batch and the spatial sizes.
    """

    batch: Extent
    size: tuple[Extent, ...]
    channels: int
    filters: int
    kernel: tuple[int, ...]
    steps: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    groups: int = 1
    bias: bool = True
    x_strides: tuple[Extent, ...] = ()
    y_strides: tuple[Extent, ...] = ()

    def __post_init__(self) -> None:
        rank = len(self.size)
        defaults = {"steps": (1,) * rank, "dilations": (1,) * rank}
        defaults |= {"before": (0,) * rank, "after": (0,) * rank}
        for name, value in defaults.items():
            object.__setattr__(self, name, getattr(self, name) or value)
        if self.channels % self.groups or self.filters % self.groups:
            raise ShapeError(
                f"{self.channels} channels and {self.filters} filters are no multiples of"
                f" {self.groups} groups"
            )
        x = contiguous((self.batch, *self.size, self.channels))
        y = contiguous((self.batch, *self.outputs, self.filters))
        object.__setattr__(self, "x_strides", self.x_strides or x)
        object.__setattr__(self, "y_strides", self.y_strides or y)
        if self.y_strides[-1] != 1:
            raise ShapeError(f"the channels of y must be adjacent, got strides {self.y_strides}")

    @property
    def rank(self) -> int:
        return len(self.size)

    @property
    def is_told(self) -> bool:
        """Whether a run tells some of its sizes."""
        return not all(isinstance(size, int) for size in (self.batch, *self.size))

    @property
    def outputs(self) -> tuple[Extent, ...]:
        """Spatial sizes of y."""
        return tuple(
            (n + before + after - dilation * (taps - 1) - 1) // step + 1
            for n, before, after, dilation, taps, step in zip(
                self.size, self.before, self.after, self.dilations, self.kernel, self.steps
            )
        )

    @property
    def group_channels(self) -> int:
        return self.channels // self.groups

    @property
    def group_filters(self) -> int:
        return self.filters // self.groups

    @property
    def taps(self) -> int:
        return math.prod(self.kernel)

    @property
    def flops(self) -> int:
        """Multiplications and additions, those of the padding included."""
        return 2 * self.batch * math.prod(self.outputs) * self.filters * self.depth

    @property
    def depth(self) -> int:
        """Products that are summed for one element of y."""
        return self.taps * self.group_channels

    @property
    def weight_bytes(self) -> int:
        return 4 * self.filters * self.depth

    def flattened(self) -> Convolution:
        """The same with as few spatial axes as its strides allow; for kernels of one tap only.

        Epilogues then see fewer axes: use it where they don't tell batch and spatial axes apart.
        """
        if self.taps > 1 or any(self.before) or any(self.after):
            return self
        steps = (1, *self.steps, 1)
        x_strides = [stride * step for stride, step in zip(self.x_strides, steps)]
        axes = list(zip((self.batch, *self.outputs), x_strides, self.y_strides))
        merged = _merge_axes(axes)
        sizes = tuple(size for size, _, _ in merged)
        batch, size = (1, sizes) if len(sizes) == 1 else (sizes[0], sizes[1:])
        lead = [(0, 0)] if len(sizes) == 1 else []
        strides = [*lead, *((x, y) for _, x, y in merged), (x_strides[-1], 1)]
        return Convolution(
            batch=batch,
            size=size,
            channels=self.channels,
            filters=self.filters,
            kernel=(1,) * len(size),
            groups=self.groups,
            bias=self.bias,
            x_strides=tuple(x for x, _ in strides),
            y_strides=tuple(y for _, y in strides),
        )

    def in_three_dimensions(self) -> Convolution:
        """The same with leading spatial axes of size 1."""
        more = 3 - self.rank
        ones, zeros = (1,) * more, (0,) * more
        return replace(
            self,
            size=ones + self.size,
            kernel=ones + self.kernel,
            steps=ones + self.steps,
            dilations=ones + self.dilations,
            before=zeros + self.before,
            after=zeros + self.after,
            x_strides=(self.x_strides[0], *zeros, *self.x_strides[1:]),
            y_strides=(self.y_strides[0], *zeros, *self.y_strides[1:]),
        )


def product(
    rows: int, depth: int, columns: int, bias: bool = True, x_stride: int = 0, y_stride: int = 0
) -> Convolution:
    """x[rows, depth] @ weight[columns, depth].T as a convolution of one tap; strides of a row."""
    return Convolution(
        batch=1,
        size=(rows,),
        channels=depth,
        filters=columns,
        kernel=(1,),
        bias=bias,
        x_strides=(0, x_stride or depth, 1),
        y_strides=(0, y_stride or columns, 1),
    )


def contiguous(shape: tuple[Extent, ...]) -> tuple[Extent, ...]:
    """Strides in elements of a dense tensor."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _merge_axes(
    axes: list[tuple[Extent, Extent, Extent]],
) -> list[tuple[Extent, Extent, Extent]]:
    """(size, x stride, y stride) of neighbours made one where both tensors step through evenly."""
    merged = [axes[0]]
    for size, x, y in axes[1:]:
        outer, outer_x, outer_y = merged[-1]
        if outer == 1 or (outer_x == size * x and outer_y == size * y):
            merged[-1] = (outer * size, x, y)
        elif size != 1:
            merged.append((size, x, y))
    return merged
