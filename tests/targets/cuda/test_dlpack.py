"""What DLPack's fields say of a tensor, and tensors that go to other libraries, without a GPU."""

from __future__ import annotations

import struct
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.targets.cuda.stub import stubbed
from tests.targets.cuda.stub_driver import Driver
from whet.errors import InvalidInput
from whet.ir.types import NUMPY_DTYPES
from whet.targets.cuda import dlpack, driver
from whet.targets.cuda.array import DLPACK_HOST as HOST
from whet.targets.cuda.array import DeviceArray
from whet.targets.cuda.memory import Loan


@pytest.fixture
def gpu() -> Iterator[Driver]:
    with stubbed() as found:
        yield found


def on_device(array: Any) -> DeviceArray:
    """A tensor on the GPU, which has memory of its own."""
    context = driver.Context.of(0)
    memory = Loan(context.stream, array.nbytes)
    return DeviceArray(context, memory.pointer, array.dtype, array.shape, memory).fill(array)


@pytest.fixture
def on_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets NumPy take tensors of the stub, whose memory is the host's."""
    monkeypatch.setattr(DeviceArray, "__dlpack_device__", lambda self: HOST)


@pytest.mark.parametrize("shape", [(), (1,), (3, 4), (2, 1, 5), (3, 0)])
@pytest.mark.parametrize("dtype", ["?", "i1", "u2", "i8", "f2", "f4", "f8"])
def test_what_others_get(gpu: Driver, on_host: None, dtype: str, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    taken = np.from_dlpack(on_device(array))
    assert taken.dtype == array.dtype and taken.shape == shape
    np.testing.assert_array_equal(taken, array)


def test_bfloat16_is_no_integer_to_others(gpu: Driver) -> None:
    array = on_device(np.ones((2, 3), NUMPY_DTYPES["bfloat16"]))
    taken = dlpack.adopt(_Other(array), array.context, None, "x")
    assert taken is not None and taken.pointer == array.pointer
    assert taken.dtype == array.dtype and taken.shape == (2, 3)
    with pytest.raises(InvalidInput, match="DLPack has no"):
        on_device(np.ones(2, NUMPY_DTYPES["float8_e5m2"])).__dlpack__()


class _Other:
    """A tensor that is another library's."""

    def __init__(self, array: DeviceArray) -> None:
        self.__dlpack__, self.__dlpack_device__ = array.__dlpack__, array.__dlpack_device__


def test_a_tensor_that_ends_while_an_error_is_on_its_way(gpu: Driver, on_host: None) -> None:
    array = on_device(np.ones(3))
    ended = weakref.ref(array)
    with pytest.raises(IndexError, match="100 is out of bounds"):
        np.from_dlpack(array)[100]
    del array
    assert ended() is None


def test_a_capsule_that_is_refused(gpu: Driver) -> None:
    array = on_device(np.ones(3))
    ended = weakref.ref(array)
    with pytest.raises(RuntimeError, match=r"[Dd]evice"):
        np.from_dlpack(array)
    del array
    assert ended() is None


def test_other_devices_and_copies(gpu: Driver) -> None:
    array = on_device(np.arange(3.0))
    there = np.from_dlpack(array, device="cpu")
    np.testing.assert_array_equal(there, [0, 1, 2])
    assert there.ctypes.data != array.pointer
    for wanted in ({"dl_device": (2, 1)}, {"dl_device": (1, 0), "copy": False}):
        with pytest.raises(BufferError, match="is not given on DLPack's device"):
            array.__dlpack__(**wanted)
    copied = dlpack.adopt(_Copied(array), array.context, None, "x")
    assert copied is not None and copied.pointer != array.pointer
    np.testing.assert_array_equal(copied.numpy(), [0, 1, 2])


class _Copied(_Other):
    def __init__(self, array: DeviceArray) -> None:
        super().__init__(array)
        self.__dlpack__ = lambda stream: array.__dlpack__(stream=stream, copy=True)


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
