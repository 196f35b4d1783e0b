"""What a run is given, checked against the model's types, as kernels read it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from whet.errors import Error, InvalidInput, TypeMismatch
from whet.ir.types import (
    NUMPY_DTYPES,
    OptionalType,
    SequenceType,
    TensorType,
    Type,
    UnrankedType,
    dtype_name,
)

if TYPE_CHECKING:
    from whet.plan.target import Device


def accept(what: str, x: Any, kind: Type, device: Device, stream: Any = None) -> Any:
    """An input of the type: a contiguous array, NumPy's or the device's own, a list, or None.

    `what` names it in errors, such as "input 'x'". Raises InvalidInput.
    """
    if type(kind) is TensorType and _is_ready(x, kind):
        return x
    match kind:
        case SequenceType(element=element):
            if not isinstance(x, list | tuple):
                raise InvalidInput(f"{what} must be a list of arrays, got {type(x).__name__}")
            return [
                accept(f"{what}[{i}]", item, element, device, stream) for i, item in enumerate(x)
            ]
        case OptionalType(element=element):
            return None if x is None else accept(what, x, element, device, stream)
    array = _strings(what, x) if kind.dtype == "string" else _numbers(what, x, kind, device, stream)
    if isinstance(kind, TensorType):
        _check_shape(what, array.shape, kind)
    return array


def _is_ready(x: Any, kind: TensorType) -> bool:
    """Whether an input can be taken as it is."""
    if type(x) is not np.ndarray or x.dtype != kind.numpy or not x.flags.c_contiguous:
        return False
    if kind.dtype == "string":
        return False
    if kind.is_static:
        return x.shape == kind.shape
    sizes = zip(kind.shape, x.shape)
    return x.ndim == kind.rank and all(s == n for s, n in sizes if isinstance(s, int))


def _numbers(
    what: str, x: Any, kind: TensorType | UnrankedType, device: Device, stream: Any
) -> Any:
    """An array of exactly the type's dtype, in this machine's byte order and without gaps."""
    if not isinstance(x, np.ndarray | np.generic) and hasattr(x, "__dlpack__"):
        try:
            adopted = device.adopt(x, what, stream)
        except Error:
            raise
        except Exception as error:  # the other library's, of any kind
            raise _refused(what, x, error) from error
        if adopted is not None:
            _check_dtype(what, adopted, kind)
            return adopted
        x = _from_dlpack(what, x)
    try:
        array = np.asarray(x)
    except ValueError as error:  # rows of different lengths
        raise InvalidInput(f"{what} is no array: {error}") from None
    if array.dtype == object and not isinstance(x, np.ndarray):
        raise InvalidInput(f"{what} must be an array of {kind.dtype}, got a {type(x).__name__}")
    _check_dtype(what, array, kind)
    array = array.astype(TensorType(kind.dtype, ()).numpy, copy=False)
    return np.ascontiguousarray(array) if array.ndim else array


def _from_dlpack(what: str, x: Any) -> np.ndarray:
    try:
        return np.from_dlpack(x)
    except Exception as error:  # the other library's, of any kind
        raise _refused(what, x, error) from error


def _refused(what: str, x: Any, error: Exception) -> InvalidInput:
    return InvalidInput(
        f"{what}, a {type(x).__name__}, cannot be taken through DLPack: {error}; give a NumPy array"
    )


def _strings(what: str, x: Any) -> np.ndarray:
    """Text, of which bytes are read as UTF-8."""
    array = np.asarray(x, object)
    texts = [_text(element) for element in array.flat]
    others = [element for element in texts if not isinstance(element, str)]
    if others:
        raise InvalidInput(f"{what} must be strings, got {type(others[0]).__name__} among them")
    result = np.empty(len(texts), object)
    result[:] = texts
    return result.reshape(array.shape)


def _text(x: Any) -> Any:
    return x.decode("utf-8", "surrogateescape") if isinstance(x, bytes) else x


def _check_dtype(what: str, array: Any, kind: TensorType | UnrankedType) -> None:
    if array.dtype is NUMPY_DTYPES.get(kind.dtype):
        return
    try:
        found = "object" if array.dtype == object else dtype_name(array.dtype)
    except TypeMismatch:
        found = str(array.dtype)  # one that no tensor can have
    if found != kind.dtype:
        raise InvalidInput(f"{what} must be {kind.dtype}, got {found}; convert it with .astype")


def _check_shape(what: str, shape: tuple[int, ...], kind: TensorType) -> None:
    if shape == kind.shape:
        return
    sizes = zip(kind.shape, shape)
    if len(shape) != kind.rank or any(s != n for s, n in sizes if isinstance(s, int)):
        raise InvalidInput(f"{what} is {kind}, got an array of the shape {list(shape)}")
