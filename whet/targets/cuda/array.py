"""Tensors in the memory of a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from whet.targets.cuda.driver import Context, Stream, handle_of
from whet.targets.cuda.memory import Loan

DLPACK_CUDA, DLPACK_HOST = 2, (1, 0)


class DeviceArray:
    """A dense, row-major tensor in the memory of a GPU.

    It speaks DLPack (`torch.from_dlpack(x)`), `__cuda_array_interface__`, and becomes a NumPy array
    by `numpy.asarray(x)`.
    """

    host: np.ndarray | None = None
    """The same in the host's memory, where that is kept."""
    stream: Stream | None = None
    """A stream of a caller's, on which the elements will be there; None where they are."""
    verify: Callable[[], None] | None = None
    """Raises for a wrong index that the elements were made with."""

    def __init__(
        self,
        context: Context,
        pointer: int,
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
        owner: object,
    ) -> None:
        self.context, self.pointer, self.owner = context, pointer, owner
        self.dtype, self.shape = dtype, shape

    def fill(self, array: np.ndarray) -> DeviceArray:
        """Itself, with the elements of a NumPy array."""
        array = np.ascontiguousarray(array)
        with self.context:
            self.context.stream.upload(self.pointer, array.ctypes.data, array.nbytes)
            self.context.stream.synchronize()
        return self

    def on(self, stream: Stream | None) -> DeviceArray:
        """The same elements, for use on a caller's stream, or, without one, on any."""
        if stream is self.stream:
            return self
        if self.stream is not None:
            with self.context:
                stream.follow(self.stream) if stream is not None else self.stream.synchronize()
        array = DeviceArray(self.context, self.pointer, self.dtype, self.shape, self)
        array.stream, array.host = stream, self.host
        return array

    def allocate(self, stream: Stream) -> None:
        """Fresh memory, in order with a stream."""
        self.owner = memory = Loan(stream, self.nbytes)
        self.pointer = memory.pointer

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def numpy(self) -> np.ndarray:
        """A copy in the host's memory."""
        if self.host is not None:
            return self.host
        result = np.empty(self.shape, self.dtype)
        stream = self.stream or self.context.stream
        with self.context:
            stream.download(result.ctypes.data, self.pointer, self.nbytes)
            stream.synchronize()
        if self.verify is not None:
            self.verify()
        return result

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        result = self.numpy()
        return result if dtype is None else result.astype(dtype)

    def copy(self) -> DeviceArray:
        """The same elements in memory of their own."""
        made = DeviceArray(self.context, 0, self.dtype, self.shape, None)
        made.allocate(self.context.stream)
        with self.context:
            if self.stream is not None:
                self.stream.synchronize()
            self.context.stream.copy(made.pointer, self.pointer, self.nbytes)
            self.context.stream.synchronize()
        return made

    def __repr__(self) -> str:
        return f"DeviceArray({self.dtype}{list(self.shape)} on cuda:{self.context.found.number})"

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "version": 3,
            "strides": None,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return DLPACK_CUDA, self.context.found.number

    def __dlpack__(
        self,
        stream: Any = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
        **ignored: Any,
    ) -> Any:
        """A capsule, in which the tensor is finished for what comes next on a stream: by default on
        every one. Raises BufferError for a device that it is not on, but the host."""
        if dl_device not in (None, self.__dlpack_device__()):
            if dl_device != DLPACK_HOST or copy is False:
                raise BufferError(f"{self} is not given on DLPack's device {dl_device}")
            return self.numpy().__dlpack__()
        if copy:
            return self.copy().__dlpack__()
        if self.stream is not None and stream != self.stream.number:
            with self.context:  # the default stream is that of the current context
                if stream is None:
                    self.stream.synchronize()
                elif stream != -1:
                    Stream(self.context, handle_of(stream)).follow(self.stream)
        from whet.targets.cuda.dlpack import capsule

        return capsule(self)
