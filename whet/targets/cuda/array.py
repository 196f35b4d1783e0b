"""Tensors in the memory of a GPU, and their exchange with other libraries by DLPack.

The layout of the structures is that of dlpack.h, version 1.0; capsules are exchanged in the older
form without versions, which every library understands.
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from whet.errors import InvalidInput
from whet.ir.types import NUMPY_DTYPES, TensorType, dtype_name
from whet.targets.cuda.driver import Context, Stream, api, check

CUDA, CUDA_HOST, CUDA_MANAGED = 2, 3, 13
CODES = {"i": 0, "u": 1, "f": 2, "b": 6}
BFLOAT = 4
UNORDERED = -1  # DLPack: the exporter leaves streams alone


class DLTensor(ctypes.Structure):
    """A tensor as DLPack has it."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class DLManagedTensor(ctypes.Structure):
    """A tensor and how it is given back."""


DELETER = ctypes.CFUNCTYPE(None, ctypes.POINTER(DLManagedTensor))
DLManagedTensor._fields_ = [
    ("tensor", DLTensor),
    ("context", ctypes.c_void_p),
    ("deleter", DELETER),
]

_new = ctypes.pythonapi.PyCapsule_New
_new.restype, _new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.restype, _is_valid.argtypes = ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p]
_raw_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_rename = ctypes.pythonapi.PyCapsule_SetName
_rename.restype, _rename.argtypes = ctypes.c_int, [ctypes.py_object, ctypes.c_char_p]

NAME, USED = b"dltensor", b"used_dltensor"


class DeviceArray:
    """A dense, row-major tensor in the memory of a GPU.

    It speaks DLPack (`torch.from_dlpack(x)`), `__cuda_array_interface__`, and becomes a NumPy array
    by `numpy.asarray(x)`.
    """

    def __init__(
        self, context: Context, pointer: int, dtype: Any, shape: Sequence[int], owner: object
    ) -> None:
        self.context, self.pointer, self.owner = context, pointer, owner
        self.dtype = np.dtype(dtype)
        self.shape = tuple(shape)
        self.host: np.ndarray | None = None
        """The same in the host's memory, where that is kept."""
        self.stream: Stream | None = None
        """A stream of a caller's, on which the elements will be there; None where they are."""
        self.verify: Callable[[], None] | None = None
        """Raises for a wrong index that the elements were made with."""

    @classmethod
    def empty(cls, context: Context, kind: TensorType) -> DeviceArray:
        """Fresh memory for a tensor."""
        shape = [int(n) for n in kind.shape]
        memory = context.allocate(math.prod(shape) * kind.numpy.itemsize)
        return cls(context, memory.pointer, kind.numpy, shape, memory)

    @classmethod
    def of(cls, context: Context, array: np.ndarray) -> DeviceArray:
        """A NumPy array's elements on the device."""
        array = np.ascontiguousarray(array).reshape(array.shape)
        made = cls.empty(context, TensorType(dtype_name(array.dtype), array.shape))
        context.use()
        context.stream.upload(made.pointer, array.ctypes.data, array.nbytes)
        context.stream.synchronize()
        return made

    def on(self, stream: Stream | None) -> DeviceArray:
        """The same elements, for use on a caller's stream, or, without one, on any."""
        if stream is self.stream:
            return self
        if self.stream is not None:
            stream.follow(self.stream) if stream is not None else self.stream.synchronize()
        array = DeviceArray(self.context, self.pointer, self.dtype, self.shape, self)
        array.stream, array.host = stream, self.host
        return array

    def allocate(self, stream: Stream) -> None:
        """Fresh memory, in order with a stream."""
        memory = self.context.allocate(self.nbytes, stream)
        self.pointer, self.owner = memory.pointer, memory

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
        self.context.use()
        stream = self.stream or self.context.stream
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
        made = DeviceArray.empty(self.context, TensorType(dtype_name(self.dtype), self.shape))
        self.context.use()
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
        return CUDA, self.context.found.number

    def __dlpack__(self, stream: Any = None, **ignored: Any) -> Any:
        """A capsule, in which the tensor is finished for what comes next on a stream: by default on
        every one."""
        if self.stream is not None and stream != self.stream.number:
            if stream is None:
                self.stream.synchronize()
            elif stream != -1:
                self.context.foreign(stream).follow(self.stream)
        return _capsule(self)


_alive: dict[int, tuple[Any, ...]] = {}
"""What capsules that are still in use point to."""


@DELETER
def _forget(managed: Any) -> None:
    _alive.pop(ctypes.addressof(managed.contents), None)


@ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
def _capsule_ends(capsule: int) -> None:
    """A capsule that nobody took gives its tensor back."""
    if _is_valid(capsule, NAME):
        _alive.pop(_raw_pointer(capsule, NAME), None)


def _capsule(array: DeviceArray) -> Any:
    shape = (ctypes.c_int64 * max(array.ndim, 1))(*array.shape)
    managed = DLManagedTensor()
    tensor = managed.tensor
    tensor.data, tensor.byte_offset = array.pointer, 0
    tensor.device_type, tensor.device_id = array.__dlpack_device__()
    tensor.ndim, tensor.lanes, tensor.bits = array.ndim, 1, array.dtype.itemsize * 8
    is_bfloat = dtype_name(array.dtype) == "bfloat16"
    code = BFLOAT if is_bfloat else CODES.get(array.dtype.kind)
    if code is None:
        raise InvalidInput(f"DLPack has no {array.dtype}; take numpy.asarray instead")
    tensor.code = code
    tensor.shape = ctypes.cast(shape, ctypes.POINTER(ctypes.c_int64))
    managed.deleter = _forget
    address = ctypes.addressof(managed)
    _alive[address] = (managed, shape, array)
    return _new(address, NAME, ctypes.cast(_capsule_ends, ctypes.c_void_p))


_TENSOR = struct.Struct("=QiiiBBHQQQ")
"""The fields of DLTensor, read at once: a run has no time for one after the other."""

_DELETER_AT = _TENSOR.size + ctypes.sizeof(ctypes.c_void_p)
_deleters: dict[int, Any] = {}
"""By address: libraries have one each."""


class _Taken:
    """Another library's tensor: given back with the last reference."""

    def __init__(self, managed: int) -> None:
        self.managed = managed

    def __del__(self) -> None:
        address = ctypes.c_void_p.from_address(self.managed + _DELETER_AT).value
        if address is None:
            return
        if address not in _deleters:
            _deleters[address] = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)
        _deleters[address](self.managed)


def adopt(
    x: Any, context: Context, stream: Stream | None, place: tuple[int, int], what: str
) -> DeviceArray:
    """Another library's tensor on this GPU, without a copy, finished for what comes next on a
    stream; raises InvalidInput where it is not here (its `place` is DLPack's), or not dense."""
    kind, number = place
    if kind not in (CUDA, CUDA_MANAGED) or number != context.found.number:
        raise InvalidInput(
            f"{what} lies on device {number} of DLPack's kind {kind}; the session runs on "
            f"cuda:{context.found.number}: copy it there"
        )
    # What is on the caller's stream needs no other order than that.
    wanted = context.stream.number if stream is None else UNORDERED
    capsule = x.__dlpack__(stream=wanted)
    managed = _pointer(capsule, NAME)
    _rename(capsule, USED)
    owner = _Taken(managed)
    fields = _TENSOR.unpack(ctypes.string_at(managed, _TENSOR.size))
    data, _, _, rank, code, bits, lanes, shape_at, strides_at, offset = fields
    shape = _numbers(shape_at, rank)
    if strides_at and not _is_dense(shape, _numbers(strides_at, rank)):
        raise InvalidInput(f"{what} is not contiguous; make it so, with .contiguous() in PyTorch")
    array = DeviceArray(context, data + offset, _dtype(code, bits, lanes, what), shape, owner)
    array.stream = stream
    return array


def _numbers(address: int, count: int) -> tuple[int, ...]:
    return struct.unpack(f"={count}q", ctypes.string_at(address, 8 * count)) if count else ()


def _is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides)):
        if size not in (0, 1) and stride != step:
            return False
        step *= size
    return True


def _dtype(code: int, bits: int, lanes: int, what: str) -> Any:
    found = _DTYPES.get((code, bits))
    if lanes != 1 or found is None:
        raise InvalidInput(f"{what} has a dtype that no tensor can have")
    return found


_DTYPES = {
    **{(CODES[k], 8 * n): np.dtype(f"{k}{n}") for k in "iu" for n in (1, 2, 4, 8)},
    **{(CODES["f"], 8 * n): np.dtype(f"f{n}") for n in (2, 4, 8)},
    (CODES["b"], 8): np.dtype("bool"),
    (BFLOAT, 16): np.dtype(NUMPY_DTYPES["bfloat16"]),
}
"""By DLPack's code and the number of bits."""


def wait(context: Context) -> None:
    """Waits for everything on the device."""
    context.use()
    check(api().cuCtxSynchronize(), "running on the device")
