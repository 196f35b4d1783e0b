"""The CUDA driver, as much of it as is needed: devices, memory, modules, streams, graphs.

Every call is checked; what the driver refuses is a DeviceError that says what to do.
"""

from __future__ import annotations

import ctypes
import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from numbers import Integral
from types import SimpleNamespace
from typing import Any, ClassVar

from whet.errors import DeviceError, InvalidSetting, OutOfMemory
from whet.targets.cuda.architecture import Architecture, of_capability

ALIGNMENT = 256
API_VERSION = 12000  # of the functions that are called directly
LEAST_DRIVER = 12030  # edges of a graph say how much of a kernel is waited for

MOST_KEPT, MOST_KEPT_SIZES, MOST_KEPT_BYTES = 4, 8, 4 << 20
"""Pieces of one size that a stream keeps, their sizes, and the bytes of each."""


@cache
def api() -> Any:
    """The driver's functions; raises DeviceError where there is no driver or no binding to it."""
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise DeviceError(f"cuda-bindings is not there ({error}); pip install whet[cuda]") from None
    try:
        (status,) = driver.cuInit(0)
    except RuntimeError as error:
        raise DeviceError(
            f"there is no NVIDIA driver: {error} Install it, or run on `cpu`, or on `auto`, which "
            "takes a GPU where there is one"
        ) from None
    if status != driver.CUresult.CUDA_SUCCESS:
        raise DeviceError(f"the NVIDIA driver cannot be used: {_said(driver, status)}")
    _, version = driver.cuDriverGetVersion()
    if version < LEAST_DRIVER:
        raise DeviceError(
            f"the NVIDIA driver is too old: it is for CUDA {release(version)}, and whet needs one "
            f"for {release(LEAST_DRIVER)} or later; update it"
        )
    return driver


def release(version: int) -> str:
    """A version of CUDA as it is written."""
    return f"{version // 1000}.{version % 1000 // 10}"


def check(result: tuple[Any, ...], doing: str) -> Any:
    """The values of a call to the driver, without its status; raises for a failure."""
    status, *values = result
    if int(status):
        raise failure(status, doing)
    return values[0] if len(values) == 1 else tuple(values)


def failure(status: Any, doing: str) -> Exception:
    """What the driver's status means, and what can be done."""
    text = _said(api(), status)
    name = text.partition(":")[0].removeprefix("CUDA_ERROR_")
    if name == "OUT_OF_MEMORY":
        return OutOfMemory(
            f"{doing}: {text}; close other sessions, use smaller sizes, or leave weights with the "
            "host (`weight_budget=`)"
        )
    if name in FAULTS:
        text += (
            "; a kernel failed, and this process cannot use the device any more: where it is not "
            "named here, WHET_ONE_BY_ONE=1 names it in a new one"
        )
    if name in LOSSES:
        text += "; the device is lost or at fault: see `nvidia-smi`, then start a new process"
    return DeviceError(f"{doing}: {text}")


FAULTS = {
    *("ILLEGAL_ADDRESS", "MISALIGNED_ADDRESS", "INVALID_ADDRESS_SPACE", "INVALID_PC"),
    *("ILLEGAL_INSTRUCTION", "HARDWARE_STACK_ERROR", "LAUNCH_FAILED", "LAUNCH_TIMEOUT", "ASSERT"),
}
"""What a kernel did, after which the driver refuses everything else in its context."""

LOSSES = {
    *("NO_DEVICE", "DEVICE_UNAVAILABLE", "INVALID_DEVICE", "CONTEXT_IS_DESTROYED", "UNKNOWN"),
    *("ECC_UNCORRECTABLE", "NVLINK_UNCORRECTABLE", "CONTAINED", "SYSTEM_NOT_READY"),
}
"""What the driver says of a device that was there, and is no more."""


def _said(driver: Any, status: Any) -> str:
    try:
        status = driver.CUresult(int(status))
    except ValueError:  # of a driver later than its binding
        return f"error {int(status)}"
    _, name = driver.cuGetErrorName(status)
    _, text = driver.cuGetErrorString(status)
    return f"{name.decode()}: {text.decode()}" if name and text else f"error {int(status)}"


_HANDLE, _SIZE = ctypes.c_void_p, ctypes.c_size_t
_QUICK = {
    "cuCtxPopCurrent": (_HANDLE,),
    "cuCtxPushCurrent": (_HANDLE,),
    "cuCtxSetCurrent": (_HANDLE,),
    "cuEventRecord": (_HANDLE, _HANDLE),
    "cuGraphExecKernelNodeSetParams": (_HANDLE, _HANDLE, _HANDLE),
    "cuLaunchKernelEx": (_HANDLE, _HANDLE, _HANDLE, _HANDLE),
    "cuMemAllocAsync": (_HANDLE, _SIZE, _HANDLE),
    "cuMemFreeAsync": (_HANDLE, _HANDLE),
    "cuStreamWaitEvent": (_HANDLE, _HANDLE, ctypes.c_uint),
}
_SLOW = {
    "cuGraphLaunch": (_HANDLE, _HANDLE),
    "cuMemcpyDtoDAsync": (_HANDLE, _HANDLE, _SIZE, _HANDLE),
    "cuMemcpyDtoHAsync": (_HANDLE, _HANDLE, _SIZE, _HANDLE),
    "cuMemcpyHtoDAsync": (_HANDLE, _HANDLE, _SIZE, _HANDLE),
    "cuStreamSynchronize": (_HANDLE,),
}
"""Those that may wait: other threads run meanwhile."""


@cache
def direct() -> SimpleNamespace:
    """The driver's functions that runs call: on plain numbers, and the status is all they give.
    The binding makes objects of everything, which takes longer than the calls themselves."""
    kinds = ((_QUICK, ctypes.PYFUNCTYPE), (_SLOW, ctypes.CFUNCTYPE))
    return SimpleNamespace(
        **{
            name: kind(ctypes.c_int, *types)(_address(name))
            for table, kind in kinds
            for name, types in table.items()
        }
    )


def _address(name: str) -> int:
    found = check(api().cuGetProcAddress(name.encode(), API_VERSION, 0), f"looking up {name}")
    if not int(found[0]):
        raise DeviceError(f"the NVIDIA driver has no {name}; update it")
    return int(found[0])


@dataclass(frozen=True)
class Found:
    """A device that is there."""

    number: int
    name: str
    architecture: Architecture
    memory: int
    cache: int
    """The bytes of its second level."""
    driver: str


def is_installed() -> bool:
    """Whether the driver's library is there, which is sooner told than its bindings load."""
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return False
    return True


def count() -> int:
    """How many devices there are; 0 where nothing can be asked."""
    if not is_installed():
        return 0
    try:
        return int(check(api().cuDeviceGetCount(), "counting the devices"))
    except DeviceError:
        return 0


def find(number: int) -> Found:
    """The device of a number; raises DeviceError where there is none."""
    driver = api()
    there = int(check(driver.cuDeviceGetCount(), "counting the devices"))
    if not 0 <= number < there:
        known = ", ".join(f"cuda:{n}" for n in range(there)) or "none"
        raise DeviceError(f"there is no device cuda:{number}; there are: {known}")
    device = check(driver.cuDeviceGet(number), "opening the device")
    wanted = driver.CUdevice_attribute
    major, minor, multiprocessors, cache = (
        int(check(driver.cuDeviceGetAttribute(attribute, device), "asking the device"))
        for attribute in (
            wanted.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            wanted.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            wanted.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
            wanted.CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE,
        )
    )
    name = check(driver.cuDeviceGetName(256, device), "asking the device")
    text = name.split(b"\0")[0].decode()
    memory = int(check(driver.cuDeviceTotalMem(device), "asking the device"))
    version = int(check(driver.cuDriverGetVersion(), "asking the driver"))
    architecture = of_capability(major, minor, multiprocessors)
    return Found(number, text, architecture, memory, cache, release(version))


_popped = ctypes.c_uint64()
_POPPED = ctypes.addressof(_popped)
"""Where the driver says which context was current: that is known."""


class Context:
    """The primary context of a device, and its pool of memory.

    What the driver is asked for concerns the calling thread's current context, which is also what
    PyTorch takes for the current device. Within `with context` it is this one, and afterwards again
    what it was, so that neither a caller's device changes, nor, where an object ends in the middle
    of a run, that of the run.
    """

    _open: ClassVar[dict[int, Context]] = {}
    _lock = threading.Lock()

    def __init__(self, number: int) -> None:
        self.found = find(number)
        driver = api()
        self.device = check(driver.cuDeviceGet(number), "opening the device")
        self.handle = check(driver.cuDevicePrimaryCtxRetain(self.device), "opening the device")
        self.number = int(self.handle)
        with self:
            self._set_up()

    def _set_up(self) -> None:
        driver = api()
        self.stream = Stream(self)
        self.streams = [self.stream]
        """Those that no run is on: each takes memory, and making one takes time."""
        self._made = [self.stream]
        self._foreign: dict[int, Stream] = {}
        pool = check(driver.cuDeviceGetDefaultMemPool(self.device), "opening the pool of memory")
        kept = driver.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
        value = driver.cuuint64_t(2**63)
        check(driver.cuMemPoolSetAttribute(pool, kept, value), "setting up the pool of memory")
        self.pool = pool
        self._make_room_for_graphs()

    def _make_room_for_graphs(self) -> None:
        """A graph that never runs: with its first one, and only then, the driver takes memory for
        all graphs of a process, which is no session's then."""
        driver, doing = api(), "making room for graphs"
        some = check(driver.cuMemAlloc(ALIGNMENT), doing)
        params = driver.CUDA_MEMSET_NODE_PARAMS()
        params.dst, params.value, params.elementSize = int(some), 0, 1
        params.width, params.height, params.pitch = ALIGNMENT, 1, ALIGNMENT
        graph = check(driver.cuGraphCreate(0), doing)
        check(driver.cuGraphAddMemsetNode(graph, [], 0, params, self.handle), doing)
        self._never_run = check(driver.cuGraphInstantiate(graph, 0), doing)
        check(driver.cuGraphDestroy(graph), doing)
        check(driver.cuMemFree(some), doing)

    @classmethod
    def of(cls, number: int) -> Context:
        """The one context of a device."""
        with cls._lock:
            if number not in cls._open:
                cls._open[number] = cls(number)
            return cls._open[number]

    def __enter__(self) -> Context:
        if status := direct().cuCtxPushCurrent(self.number):
            raise failure(status, "choosing the device")
        return self

    def __exit__(self, *error: object) -> None:
        direct().cuCtxPopCurrent(_POPPED)

    def resume(self) -> None:
        """Makes it the current one again, behind what a caller did in the middle of a run."""
        if status := direct().cuCtxSetCurrent(self.number):
            raise failure(status, "choosing the device")

    def lend(self) -> Stream:
        """A stream for one run at a time; `streams` takes it back."""
        try:
            return self.streams.pop()
        except IndexError:
            # They stay, and are not ended with a run that the collector finds.
            made = Stream(self)
            self._made.append(made)
            return made

    def foreign(self, stream: Any) -> Stream:
        """A stream of the caller's: its handle, or an object that has one."""
        number = handle_of(stream)
        if number not in self._foreign:
            self._check_here(number)
            self._foreign[number] = Stream(self, number)
        return self._foreign[number]

    def _check_here(self, number: int) -> None:
        """Raises InvalidSetting for a stream of another device."""
        with self:
            made = check(api().cuStreamGetCtx(api().CUstream(number)), "asking a stream")
        if int(made) != self.number:
            raise InvalidSetting(
                f"the stream {number:#x} is not one of cuda:{self.found.number}, where the session "
                f"runs; in PyTorch, make it by torch.cuda.Stream(device={self.found.number})"
            )

    def trim(self) -> None:
        """Gives memory that nothing uses back to the device."""
        self.stream.synchronize()
        for stream in (self.stream, *self._foreign.values()):
            stream.forget()
        check(api().cuMemPoolTrimTo(self.pool, 0), "giving memory back")

    def free_bytes(self) -> int:
        """How much memory nobody has."""
        with self:
            free, _ = check(api().cuMemGetInfo(), "asking for free memory")
        return int(free)


def handle_of(stream: Any) -> int:
    """The number of a stream: an integer, PyTorch's `cuda_stream`, CuPy's `ptr`, or by the protocol
    `__cuda_stream__` of cuda.core. Raises InvalidSetting for what is none."""
    try:
        found = _number_in(stream)
    except Exception as error:  # the caller's own
        raise InvalidSetting(f"{stream!r} is no CUDA stream: {error}; {GIVE}") from error
    number = int(found) if isinstance(found, Integral) and not isinstance(found, bool) else -1
    if not 0 <= number < 1 << 64:
        raise InvalidSetting(f"{stream!r} is no CUDA stream; {GIVE}")
    return number


GIVE = "give its handle, or torch.cuda.Stream()"


def _number_in(stream: Any) -> Any:
    """What an object says its stream's number is; itself where it says nothing."""
    if isinstance(stream, Integral):
        return stream
    for name in ("cuda_stream", "ptr"):
        if isinstance(number := getattr(stream, name, None), int):
            return number
    if hasattr(stream, "__cuda_stream__"):
        _, number = stream.__cuda_stream__()
        return number
    return stream


class Stream:
    """Work of a device in order; with a number, a stream that belongs to the caller."""

    def __init__(self, context: Context, number: int | None = None) -> None:
        driver = api()
        self.context = context
        if number is None:
            kind = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
            with context:
                self.handle = check(driver.cuStreamCreate(kind), "making a stream")
        else:
            self.handle = driver.CUstream(number)
        self.number, self.is_own = int(self.handle), number is None
        self._kept: dict[int, list[int]] = {}
        """Memory that came back, by its size; what comes next may write to it."""
        self._mark: Event | None = None

    def synchronize(self, doing: str = "running on the device") -> None:
        """Waits until everything is done; raises DeviceError where a kernel failed."""
        if status := direct().cuStreamSynchronize(self.number):
            raise failure(status, doing)

    def upload(self, pointer: int, source: int, size: int) -> None:
        """Host to device, in order with the stream."""
        if size and (status := direct().cuMemcpyHtoDAsync(pointer, source, size, self.number)):
            raise failure(status, "copying inputs")

    def download(self, target: int, pointer: int, size: int) -> None:
        """Device to host, in order with the stream."""
        if size and (status := direct().cuMemcpyDtoHAsync(target, pointer, size, self.number)):
            raise failure(status, "copying outputs")

    def copy(self, target: int, source: int, size: int) -> None:
        """Device to device, in order with the stream."""
        if size and (status := direct().cuMemcpyDtoDAsync(target, source, size, self.number)):
            raise failure(status, "copying")

    def zero(self, pointer: int, size: int) -> None:
        """Clears memory."""
        check(api().cuMemsetD8Async(pointer, 0, size, self.handle), "clearing memory")

    def follow(self, other: Stream) -> None:
        """What comes next here waits for what another stream was asked for so far."""
        if other._mark is None:
            with other.context:  # an event is of the context that it was made in
                other._mark = Event()
        other._mark.record(other)
        self.wait_for(other._mark)

    def wait_for(self, event: Event) -> None:
        """What comes next here waits for an event."""
        if status := direct().cuStreamWaitEvent(self.number, event.number, 0):
            raise failure(status, "waiting for a stream")

    def recall(self, size: int) -> int:
        """The address of memory of a size that was kept; 0 where there is none."""
        try:
            return self._kept[size].pop()
        except (KeyError, IndexError):
            return 0

    def keep(self, size: int, pointer: int) -> bool:
        """Keeps memory that came back, and says whether it did."""
        kept = self._kept.get(size)
        if kept is None:
            if size > MOST_KEPT_BYTES or len(self._kept) >= MOST_KEPT_SIZES:
                return False
            kept = self._kept.setdefault(size, [])
        if len(kept) >= MOST_KEPT:
            return False
        kept.append(pointer)
        return True

    def forget(self) -> None:
        """Gives memory back that was kept."""
        for size in list(self._kept):
            while pointer := self.recall(size):
                # Not in order with the stream, which may be one that the caller has ended.
                with suppress(DeviceError), self.context:  # a device that is lost
                    api().cuMemFree(pointer)

    def __del__(self) -> None:
        if getattr(self, "is_own", False):
            self.forget()
            api().cuStreamDestroy(self.handle)


class Event:
    """A place in a stream."""

    def __init__(self, timed: bool = False) -> None:
        driver = api()
        flags = driver.CUevent_flags
        kind = flags.CU_EVENT_DEFAULT if timed else flags.CU_EVENT_DISABLE_TIMING
        self.handle = check(driver.cuEventCreate(kind), "making an event")
        self.number = int(self.handle)

    def record(self, stream: Stream) -> None:
        """Stands behind everything asked of the stream so far."""
        if status := direct().cuEventRecord(self.number, stream.number):
            raise failure(status, "marking a place in a stream")

    def synchronize(self) -> None:
        """Waits until all before it is done."""
        check(api().cuEventSynchronize(self.handle), "running on the device")

    def seconds_since(self, earlier: Event) -> float:
        """The device's own time between two events; waits for the later one."""
        self.synchronize()
        elapsed = check(api().cuEventElapsedTime(earlier.handle, self.handle), "timing")
        return float(elapsed) * 1e-3

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            api().cuEventDestroy(self.handle)
