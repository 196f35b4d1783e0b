"""The CUDA driver, as much of it as is needed: devices, memory, modules, streams, graphs.

Every call is checked; what the driver refuses is a DeviceError that says what to do.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np

from whet.errors import DeviceError, InvalidSetting, OutOfMemory
from whet.targets.cuda.architecture import Architecture, of_capability

ALIGNMENT = 256
PROGRAMMATIC_PORT = 1  # CU_GRAPH_KERNEL_NODE_PORT_PROGRAMMATIC, a macro of cuda.h


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
        raise DeviceError(f"there is no NVIDIA driver: {error}") from None
    if status != driver.CUresult.CUDA_SUCCESS:
        raise DeviceError(f"the NVIDIA driver cannot be used: {_said(driver, status)}")
    return driver


def check(result: tuple[Any, ...], doing: str) -> Any:
    """The values of a call to the driver, without its status; raises for a failure."""
    status, *values = result
    if int(status):
        driver = api()
        text = _said(driver, status)
        if status == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise OutOfMemory(f"{doing}: {text}; close other sessions or use smaller sizes")
        raise DeviceError(f"{doing}: {text}")
    return values[0] if len(values) == 1 else tuple(values)


def _said(driver: Any, status: Any) -> str:
    _, name = driver.cuGetErrorName(status)
    _, text = driver.cuGetErrorString(status)
    return f"{name.decode()}: {text.decode()}" if name and text else f"error {int(status)}"


@dataclass(frozen=True)
class Found:
    """A device that is there."""

    number: int
    name: str
    architecture: Architecture
    memory: int
    driver: str


def count() -> int:
    """How many devices there are; 0 where nothing can be asked."""
    try:
        return int(check(api().cuDeviceGetCount(), "counting the devices"))
    except DeviceError:
        return 0


def find(number: int) -> Found:
    """The device of a number; raises DeviceError where there is none."""
    driver = api()
    there = int(check(driver.cuDeviceGetCount(), "counting the devices"))
    if not 0 <= number < there:
        which = f"cuda:0 to cuda:{there - 1}" if there else "none"
        raise DeviceError(f"there is no device cuda:{number}; there are {there}: {which}")
    device = check(driver.cuDeviceGet(number), "opening the device")
    wanted = driver.CUdevice_attribute
    major, minor, multiprocessors = (
        int(check(driver.cuDeviceGetAttribute(attribute, device), "asking the device"))
        for attribute in (
            wanted.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
            wanted.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            wanted.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
        )
    )
    name = check(driver.cuDeviceGetName(256, device), "asking the device")
    text = name.split(b"\0")[0].decode()
    memory = int(check(driver.cuDeviceTotalMem(device), "asking the device"))
    version = int(check(driver.cuDriverGetVersion(), "asking the driver"))
    installed = f"{version // 1000}.{version % 1000 // 10}"
    return Found(number, text, of_capability(major, minor, multiprocessors), memory, installed)


class Context:
    """The primary context of a device, and its pool of memory."""

    _open: ClassVar[dict[int, Context]] = {}
    _lock = threading.Lock()

    def __init__(self, number: int) -> None:
        self.found = find(number)
        driver = api()
        self.device = check(driver.cuDeviceGet(number), "opening the device")
        self.handle = check(driver.cuDevicePrimaryCtxRetain(self.device), "opening the device")
        self.use()
        self.stream = Stream(self)
        self._foreign: dict[int, Stream] = {}
        pool = check(driver.cuDeviceGetDefaultMemPool(self.device), "opening the pool of memory")
        kept = driver.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
        value = driver.cuuint64_t(2**63)
        check(driver.cuMemPoolSetAttribute(pool, kept, value), "setting up the pool of memory")
        self.pool = pool

    @classmethod
    def of(cls, number: int) -> Context:
        """The one context of a device."""
        with cls._lock:
            if number not in cls._open:
                cls._open[number] = cls(number)
            return cls._open[number]

    def use(self) -> None:
        """Makes it the calling thread's context."""
        check(api().cuCtxSetCurrent(self.handle), "choosing the device")

    def allocate(self, size: int, stream: Stream | None = None) -> Memory:
        """Device memory, at least one byte of it: there at once, and for long; or, with a stream,
        from the pool, there for what comes next on the stream."""
        return Memory(self, size, stream)

    def foreign(self, stream: Any) -> Stream:
        """A stream of the caller's: its handle, or an object that has one."""
        number = handle_of(stream)
        if number not in self._foreign:
            self._foreign[number] = Stream(self, number)
        return self._foreign[number]

    def trim(self) -> None:
        """Gives memory that nothing uses back to the device."""
        self.stream.synchronize()
        check(api().cuMemPoolTrimTo(self.pool, 0), "giving memory back")

    def free_bytes(self) -> int:
        """How much memory nobody has."""
        self.use()
        free, _ = check(api().cuMemGetInfo(), "asking for free memory")
        return int(free)


class Memory:
    """A piece of device memory; it goes back with the last reference, in order with its stream.

    The pool takes memory from the device in large pieces: what stays for long is no part of it.
    """

    def __init__(self, context: Context, size: int, stream: Stream | None) -> None:
        self.context, self.size, self.stream = context, size, stream
        context.use()
        driver, count = api(), max(size, 1)
        got = (
            driver.cuMemAlloc(count)
            if stream is None
            else driver.cuMemAllocAsync(count, stream.handle)
        )
        status, pointer = got
        if int(status):
            check((status,), f"allocating {size:,} bytes on {context.found.name}")
        self.pointer = int(pointer)

    def __del__(self) -> None:
        pointer = getattr(self, "pointer", 0)
        if pointer:
            self.pointer = 0
            driver = api()
            driver.cuCtxSetCurrent(self.context.handle)
            if self.stream is None:
                driver.cuMemFree(pointer)  # once all that the device does is done
            else:
                driver.cuMemFreeAsync(pointer, self.stream.handle)


class Pinned:
    """Memory of the host that the device can read and write directly, as a NumPy array."""

    def __init__(self, context: Context, size: int) -> None:
        self.context = context
        context.use()
        doing = f"allocating {size:,} bytes of pinned memory"
        self.pointer = int(check(api().cuMemHostAlloc(max(size, 1), 0), doing))
        bytes_there = (ctypes.c_uint8 * max(size, 1)).from_address(self.pointer)
        self.array: np.ndarray = np.ctypeslib.as_array(bytes_there)

    def __del__(self) -> None:
        pointer = getattr(self, "pointer", 0)
        if pointer:
            self.pointer = 0
            driver = api()
            driver.cuCtxSetCurrent(self.context.handle)
            driver.cuMemFreeHost(pointer)


def handle_of(stream: Any) -> int:
    """The number of a stream: an integer, PyTorch's `cuda_stream`, CuPy's `ptr`, or by the protocol
    `__cuda_stream__` of cuda.core. Raises InvalidSetting for what is none."""
    if isinstance(stream, int):
        return stream
    for name in ("cuda_stream", "ptr"):
        if isinstance(number := getattr(stream, name, None), int):
            return number
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    raise InvalidSetting(f"{stream!r} is no CUDA stream; give its handle, or torch.cuda.Stream()")


class Stream:
    """Work of a device in order; with a number, a stream that belongs to the caller."""

    def __init__(self, context: Context, number: int | None = None) -> None:
        driver = api()
        self.context = context
        if number is None:
            kind = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
            self.handle = check(driver.cuStreamCreate(kind), "making a stream")
        else:
            self.handle = driver.CUstream(number)
        self.number = int(self.handle)

    def synchronize(self) -> None:
        """Waits until everything is done; raises DeviceError where a kernel failed."""
        check(api().cuStreamSynchronize(self.handle), "running on the device")

    def upload(self, pointer: int, source: int, size: int) -> None:
        """Host to device, in order with the stream."""
        if size:
            check(api().cuMemcpyHtoDAsync(pointer, source, size, self.handle), "copying inputs")

    def download(self, target: int, pointer: int, size: int) -> None:
        """Device to host, in order with the stream."""
        if size:
            check(api().cuMemcpyDtoHAsync(target, pointer, size, self.handle), "copying outputs")

    def copy(self, target: int, source: int, size: int) -> None:
        """Device to device, in order with the stream."""
        if size:
            check(api().cuMemcpyDtoDAsync(target, source, size, self.handle), "copying")

    def zero(self, pointer: int, size: int) -> None:
        """Clears memory."""
        check(api().cuMemsetD8Async(pointer, 0, size, self.handle), "clearing memory")

    def follow(self, other: Stream) -> None:
        """What comes next here waits for what another stream was asked for so far."""
        event = Event()
        event.record(other)
        self.wait_for(event)

    def wait_for(self, event: Event) -> None:
        """What comes next here waits for an event."""
        check(api().cuStreamWaitEvent(self.handle, event.handle, 0), "waiting for a stream")


class Event:
    """A place in a stream."""

    def __init__(self, timed: bool = False) -> None:
        driver = api()
        flags = driver.CUevent_flags
        kind = flags.CU_EVENT_DEFAULT if timed else flags.CU_EVENT_DISABLE_TIMING
        self.handle = check(driver.cuEventCreate(kind), "making an event")

    def record(self, stream: Stream) -> None:
        """Stands behind everything asked of the stream so far."""
        check(api().cuEventRecord(self.handle, stream.handle), "marking a place in a stream")

    def seconds_since(self, earlier: Event) -> float:
        """The device's own time between two events; waits for the later one."""
        driver = api()
        check(driver.cuEventSynchronize(self.handle), "running on the device")
        elapsed = check(driver.cuEventElapsedTime(earlier.handle, self.handle), "timing")
        return float(elapsed) * 1e-3

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            api().cuEventDestroy(self.handle)


class Module:
    """Machine code on a device."""

    def __init__(self, context: Context, cubin: bytes, name: str, shared: int) -> None:
        driver = api()
        context.use()
        self.handle = check(driver.cuModuleLoadData(cubin), f"loading {name}")
        function = driver.cuModuleGetFunction(self.handle, name.encode())
        self.function = check(function, f"loading {name}")
        if shared > 48 << 10:
            most = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            check(driver.cuFuncSetAttribute(self.function, most, shared), f"loading {name}")


@dataclass
class Call:
    """A launch with its arguments: eight bytes each, and the addresses at which they lie."""

    module: Module
    grid: tuple[int, int, int]
    threads: int
    shared: int
    arguments: np.ndarray
    name: str = ""
    waits: bool = False
    """Whether it waits by itself for the launch before it."""

    def __post_init__(self) -> None:
        base, count = self.arguments.ctypes.data, len(self.arguments)
        self.addresses = np.array([base + 8 * i for i in range(count)], np.uint64)

    def launch(self, stream: Stream) -> None:
        """Runs it by itself."""
        x, y, z = self.grid
        result = api().cuLaunchKernel(
            self.module.function,
            x,
            y,
            z,
            self.threads,
            1,
            1,
            self.shared,
            stream.handle,
            self.addresses.ctypes.data,
            0,
        )
        check(result, f"launching {self.name}")

    def node(self) -> Any:
        """What a graph is told of it."""
        node = api().CUDA_KERNEL_NODE_PARAMS()
        node.func = self.module.function
        node.gridDimX, node.gridDimY, node.gridDimZ = self.grid
        node.blockDimX, node.blockDimY, node.blockDimZ = self.threads, 1, 1
        node.sharedMemBytes = self.shared
        node.kernelParams = self.addresses.ctypes.data
        return node


class Graph:
    """Launches in order, as one."""

    def __init__(self, calls: Sequence[Call]) -> None:
        driver = api()
        self.graph = check(driver.cuGraphCreate(0), "making a graph")
        self.params = [call.node() for call in calls]
        self.nodes: list[Any] = []
        for call, params in zip(calls, self.params):
            added = driver.cuGraphAddKernelNode(self.graph, [], 0, params)
            node = check(added, "adding to a graph")
            if self.nodes:
                self._connect(self.nodes[-1], node, call.waits)
            self.nodes.append(node)
        self.ready = check(driver.cuGraphInstantiate(self.graph, 0), "making a graph")

    def _connect(self, before: Any, after: Any, waits: bool) -> None:
        """One node behind another: at its end, or, where it waits by itself, once all of the
        other's blocks let it start (CUDA Programming Guide, Programmatic Dependent Launch)."""
        driver = api()
        edge = driver.CUgraphEdgeData()
        if waits:
            edge.from_port = PROGRAMMATIC_PORT
            edge.type = driver.CUgraphDependencyType.CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC.value
        connect = getattr(driver, "cuGraphAddDependencies_v2", driver.cuGraphAddDependencies)
        check(connect(self.graph, [before], [after], [edge], 1), "adding to a graph")

    def update(self, number: int) -> None:
        """Takes over the changed arguments of a launch."""
        driver = api()
        node, params = self.nodes[number], self.params[number]
        result = driver.cuGraphExecKernelNodeSetParams(self.ready, node, params)
        check(result, "updating a graph")

    def launch(self, stream: Stream) -> None:
        """Runs it."""
        check(api().cuGraphLaunch(self.ready, stream.handle), "launching a graph")

    def __del__(self) -> None:
        driver = api()
        if hasattr(self, "ready"):
            driver.cuGraphExecDestroy(self.ready)
        if hasattr(self, "graph"):
            driver.cuGraphDestroy(self.graph)
