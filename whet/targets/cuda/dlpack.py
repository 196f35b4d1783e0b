"""The exchange of tensors with other libraries by DLPack.

The layout of the structures is that of dlpack.h, version 1.0; capsules are exchanged in the older
form without versions, which every library understands.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from whet.errors import InvalidInput
from whet.ir.types import NUMPY_DTYPES, TensorType, Type
from whet.targets.cuda.array import DeviceArray
from whet.targets.cuda.driver import Context, Stream

HOST, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13
CODES = {"i": 0, "u": 1, "f": 2, "b": 6}
BFLOAT = 4
UNORDERED = -1  # DLPack: the exporter leaves streams alone


_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_rename = ctypes.pythonapi.PyCapsule_SetName
_rename.restype, _rename.argtypes = ctypes.c_int, [ctypes.py_object, ctypes.c_char_p]

_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)

NAME, USED, EXCHANGE = b"dltensor", b"used_dltensor", b"dlpack_exchange_api"


class _Shown:
    """What NumPy takes for an array of its own, and never reads."""

    def __init__(self, array: DeviceArray) -> None:
        self.array = array
        width = array.dtype.itemsize
        data = array.pointer, False
        self.__array_interface__ = {
            "shape": array.shape,
            "typestr": f"<u{width}",
            "data": data,
            "version": 3,
        }


def capsule(array: DeviceArray) -> Any:
    """A capsule of a tensor of ours: NumPy's, told where the elements really are.

    It ends, and its tensor, while an exception is on its way as well as at any other time. Python
    called through ctypes would put another one in its place, and leave the memory taken.
    """
    if (known := _KNOWN.get(array.dtype)) is None:
        raise InvalidInput(f"DLPack has no {array.dtype}; take numpy.asarray instead")
    made = np.asarray(_Shown(array)).__dlpack__()
    place = (ctypes.c_char * _HEAD.size).from_address(_pointer(made, NAME))
    device = array.__dlpack_device__()
    _HEAD.pack_into(place, 0, array.pointer, *device, array.ndim, *known, 1)
    return made


_HEAD = struct.Struct("=QiiiBBH")
"""The fields of DLTensor up to its shape."""

_TENSOR = struct.Struct("=QiiiBBHQQQ")
"""The fields of DLTensor, read at once: a run has no time for one after the other."""

_DELETER_AT = _TENSOR.size + ctypes.sizeof(ctypes.c_void_p)  # in DLManagedTensor
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


def adopt(x: Any, context: Context, stream: Stream | None, what: str) -> DeviceArray | None:
    """Another library's tensor on this GPU, without a copy, finished for what comes next on a
    stream, or, without one, on the context's own; None where it is in the host's memory. Raises
    InvalidInput where it is on another device, or not dense."""
    exchange = _EXCHANGES.get(type(x)) or _exchange_of(type(x))
    if exchange is not None:
        return exchange.adopt(x, context, stream, what)
    kind, number = x.__dlpack_device__()
    if not _is_here(int(kind), number, context, what):
        return None
    # What is on the caller's stream needs no other order than that.
    wanted = context.stream.number if stream is None else UNORDERED
    with context:  # PyTorch exports what is on the current device, for its streams alone
        capsule = x.__dlpack__(stream=wanted)
    managed = _pointer(capsule, NAME)
    _rename(capsule, USED)
    owner = _Taken(managed)
    array = _read(ctypes.string_at(managed, _TENSOR.size), context, owner, what)
    array.stream = stream
    return array


def _is_here(kind: int, number: int, context: Context, what: str) -> bool:
    """Whether a tensor is on this GPU, and not in the host's memory, which may be pinned."""
    if kind in (CUDA, CUDA_MANAGED) and number == context.found.number:
        return True
    if kind in (HOST, CUDA_HOST):
        return False
    raise InvalidInput(
        f"{what} lies on device {number} of DLPack's kind {kind}; the session runs on "
        f"cuda:{context.found.number}: copy it there"
    )


def _read(fields: bytes, context: Context, owner: object, what: str) -> DeviceArray:
    """A tensor on this GPU by the fields of its DLTensor."""
    data, _, _, rank, code, bits, lanes, shape_at, strides_at, offset = _TENSOR.unpack(fields)
    extents = ctypes.string_at(shape_at, 8 * rank) if rank else b""
    strides = ctypes.string_at(strides_at, 8 * rank) if strides_at and rank else b""
    key = code, bits, lanes, extents, strides
    known = _LAYOUTS.get(key)
    if known is None:
        if len(_LAYOUTS) >= MOST_LAYOUTS:
            _LAYOUTS.clear()
        known = _LAYOUTS[key] = _layout(*key, what)
    dtype, shape = known
    return DeviceArray(context, data + offset, dtype, shape, owner)


def _layout(
    code: int, bits: int, lanes: int, extents: bytes, strides: bytes, what: str
) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """The dtype and the shape of a dense tensor."""
    shape, steps = (struct.unpack(f"={len(b) // 8}q", b) for b in (extents, strides))
    if strides and not _is_dense(shape, steps):
        raise InvalidInput(f"{what} is not contiguous; make it so, with .contiguous() in PyTorch")
    return _dtype(code, bits, lanes, what), shape


_LAYOUTS: dict[tuple[int, int, int, bytes, bytes], tuple[np.dtype[Any], tuple[int, ...]]] = {}
"""What DLPack's fields mean: inputs come back with the same ones, at other addresses."""
MOST_LAYOUTS = 1024


_Fields = ctypes.c_char * _TENSOR.size


class Exchange:
    """A library's functions behind `__dlpack_c_exchange_api__` (DLPack 1.3): they show a tensor as
    it is, and no object is made. What they show is there for as long as the tensor is."""

    def __init__(self, show: int, current_stream: int) -> None:
        self._show = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p)(show)
        kind = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_int32, ctypes.c_void_p)
        self._current_stream = kind(current_stream)

    def adopt(
        self, x: Any, context: Context, stream: Stream | None, what: str
    ) -> DeviceArray | None:
        """The tensor, finished for what comes next on a stream."""
        room = _Fields()
        if self._show(x, room):  # an exception that it set is raised by ctypes
            raise InvalidInput(f"{what} cannot be taken through DLPack")
        fields = room.raw
        kind, number = _DEVICE.unpack_from(fields, 8)
        if (kind != CUDA or number != context.found.number) and not _is_here(
            kind, number, context, what
        ):
            return None
        array = _read(fields, context, x, what)
        if stream is None:
            found = ctypes.c_uint64()
            self._current_stream(kind, number, ctypes.addressof(found))
            with context:
                context.stream.follow(context.foreign(found.value))
        array.stream = stream
        return array


Layouts = dict[tuple[Any, Any], tuple[np.dtype[Any], tuple[Any, ...]]]
"""The dtypes and shapes of PyTorch's tensors that one input took, and what they are to NumPy; for
no shape the one that the input has, whose sizes may be open."""


def is_torch(kind: type) -> bool:
    """Whether a type is PyTorch's tensor, whose attributes say what DLPack does, and sooner."""
    return kind.__module__ in ("torch", "torch.nn.parameter") and hasattr(kind, "data_ptr")


def known(x: Any, context: Context, layouts: Layouts) -> DeviceArray | None:
    """PyTorch's tensor on this GPU where one like it was taken before; None for all else."""
    layout = layouts.get((x.dtype, x.shape)) or _alike(x, layouts)
    if (
        layout is None
        or not x.is_cuda
        or x.get_device() != context.found.number
        or not x.is_contiguous()
    ):
        return None
    dtype, shape = layout
    return DeviceArray(context, x.data_ptr(), dtype, shape, x)


def learn(x: Any, array: DeviceArray, kind: Type, layouts: Layouts) -> None:
    """Remembers what PyTorch's tensor was taken as, for an input of a type."""
    if len(layouts) >= MOST_LAYOUTS:
        layouts.clear()
    layouts[x.dtype, x.shape] = array.dtype, array.shape
    if isinstance(kind, TensorType):
        layouts[x.dtype, None] = array.dtype, kind.shape


def _alike(x: Any, layouts: Layouts) -> tuple[np.dtype[Any], tuple[int, ...]] | None:
    """What a tensor of a new shape is to NumPy, where the input takes it."""
    found, shape = layouts.get((x.dtype, None)), tuple(x.shape)
    if found is None or len(shape) != len(found[1]) or len(layouts) >= MOST_LAYOUTS:
        return None
    if any(size != n for size, n in zip(found[1], shape) if isinstance(size, int)):
        return None
    layouts[x.dtype, x.shape] = found[0], shape
    return found[0], shape


_DEVICE = struct.Struct("=ii")
_EXCHANGES: dict[type, Exchange] = {}
_WITHOUT: set[type] = set()
_TABLE = struct.Struct("=IIQQQQQQ")
"""DLPackExchangeAPI: the version, the older table, then five functions."""


def _exchange_of(kind: type) -> Exchange | None:
    """The functions of a type of tensors; None where it has none that are known here."""
    if kind in _WITHOUT:
        return None
    table = getattr(kind, "__dlpack_c_exchange_api__", None)
    if table is not None and _is_valid(table, EXCHANGE):
        address = _pointer(table, EXCHANGE)
        major, _, _, _, _, _, show, stream = _TABLE.unpack(ctypes.string_at(address, _TABLE.size))
        if major == 1 and show and stream:
            return _EXCHANGES.setdefault(kind, Exchange(show, stream))
    _WITHOUT.add(kind)
    return None


def _is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the elements lie side by side; of none, strides say nothing."""
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides)):
        if size != 1 and stride != step and 0 not in shape:
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
_KNOWN = {dtype: kind for kind, dtype in _DTYPES.items()}
