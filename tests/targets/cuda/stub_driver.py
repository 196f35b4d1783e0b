"""A driver without a GPU: device memory is the host's, and a kernel is what a test says.

A launch reads its arguments when a graph is made or updated, as a real one does: a run whose inputs
moved without an update computes from the old ones.
"""

from __future__ import annotations

import ctypes
import itertools
import random
import threading
import types
from collections import Counter
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import numpy as np

from whet.targets.cuda import driver
from whet.targets.cuda.launches import Configuration

TOTAL = 1 << 33
CACHE = 4 << 20
DEFAULT_STREAMS = 0, 1, 2


class Status(IntEnum):
    """What calls give back first."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_ILLEGAL_ADDRESS = 700


class Anything:
    """Constants by any name."""

    def __getattr__(self, name: str) -> int:
        return 0


class Names:
    """Constants that are their own names."""

    def __getattr__(self, name: str) -> str:
        return name


class Params:
    """CUDA_KERNEL_NODE_PARAMS."""

    def getPtr(self) -> int:
        return id(self)


class Handle(str):
    """A function: its name, and a number."""

    number: int

    def __int__(self) -> int:
        return self.number


class Driver(types.ModuleType):
    """cuda.bindings.driver, as much of it as is used."""

    CUresult = Status
    CUmemPool_attribute = CUstream_flags = CUevent_flags = CUfunction_attribute = Anything()
    CUdevice_attribute = Names()
    CUgraphDependencyType = types.SimpleNamespace(
        CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC=types.SimpleNamespace(value=1)
    )
    CUgraphEdgeData = types.SimpleNamespace
    CUstream = staticmethod(int)
    cuuint64_t = staticmethod(int)

    def __init__(self, devices: int = 1) -> None:
        super().__init__("driver")
        self.devices = devices
        self.version, self.capability, self.status = 13000, (9, 0), 0
        """Of the driver, of each device, and what waiting for a stream gives."""
        self.capabilities: dict[int, tuple[int, int]] = {}
        """Of single devices that have another."""
        self.faulty: set[str] = set()
        """Kernels that fail, by what they are called here, and nodes whose kernels will."""
        self.contexts: list[int] = []
        self.current = threading.local()
        self.lost: set[int] = set()
        """Contexts that refuse everything."""
        self.waited: list[int] = []
        """The contexts that were waited for."""
        self.owner: dict[Any, int] = {}
        """The contexts in which streams, memory and modules were made."""
        self.memory: dict[int, Any] = {}
        """Allocations of the device, by address."""
        self.counts: Counter[str] = Counter()
        self.kernels: dict[str, tuple[int, Callable[..., None]]] = {}
        """The number of arguments of each, and what it does with the addresses."""
        self.numbers = itertools.count(1 << 20)
        self.functions: dict[int, Handle] = {}
        self.graphs: dict[int, list[tuple[int, Any]]] = {}
        self.ready: dict[int, dict[int, Any]] = {}
        self.captured = None
        self.children: dict[int, list[Callable[[], None]]] = {}
        self._alive: list[Any] = []
        self._addresses: dict[str, int] = {}
        self.launched: list[str] = []
        self.random = random.Random(1)
        self.depth = 0
        """How many launches came one after the other in the last graph."""
        self.edges: dict[int, list[tuple[int, int]]] = {}
        self.ended: set[int] = set()
        """Streams that are no more."""

    @property
    def used(self) -> int:
        """Bytes of the device that are taken."""
        return sum(len(m) for m in self.memory.values())

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def nothing(*arguments: Any) -> tuple[Status]:
            self.counts[name] += 1
            return (Status.CUDA_SUCCESS,)

        return nothing

    def new(self) -> int:
        return next(self.numbers)

    # Devices and errors.

    def cuDeviceGetCount(self) -> tuple[int, int]:
        return 0, self.devices

    def cuDeviceGet(self, number: int) -> tuple[int, int]:
        return 0, number

    def cuDeviceGetAttribute(self, attribute: str, device: int) -> tuple[int, int]:
        major, minor = self.capabilities.get(device, self.capability)
        known = {
            "COMPUTE_CAPABILITY_MAJOR": major,
            "COMPUTE_CAPABILITY_MINOR": minor,
            "MULTIPROCESSOR_COUNT": 132,
            "L2_CACHE_SIZE": CACHE,
            "CLOCK_RATE": 1_980_000,
            "MEMORY_CLOCK_RATE": 3_201_000,
            "GLOBAL_MEMORY_BUS_WIDTH": 6144,
        }
        return 0, known[attribute.removeprefix("CU_DEVICE_ATTRIBUTE_")]

    def cuDeviceGetName(self, size: int, device: int) -> tuple[int, bytes]:
        return 0, b"a stub\0"

    def cuDeviceTotalMem(self, device: int) -> tuple[int, int]:
        return 0, TOTAL

    def cuDriverGetVersion(self) -> tuple[int, int]:
        return 0, self.version

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[int, int]:
        self.contexts.append(self.new())
        return 0, self.contexts[-1]

    @property
    def stack(self) -> list[int]:
        """The calling thread's contexts: the last one is current, 0 is none."""
        if not hasattr(self.current, "stack"):
            self.current.stack = [0]
        return self.current.stack  # type: ignore[no-any-return]

    def direct_cuCtxSetCurrent(self, context: int) -> None:
        self.stack[-1] = context

    def direct_cuCtxPushCurrent(self, context: int) -> int:
        if context in self.lost:
            return Status.CUDA_ERROR_ILLEGAL_ADDRESS
        self.stack.append(context)
        return 0

    def direct_cuCtxPopCurrent(self, place: int) -> None:
        ctypes.c_uint64.from_address(place).value = self.stack.pop()

    def cuCtxSynchronize(self) -> tuple[int]:
        assert self.stack[-1], "no context is current"
        self.waited.append(self.stack[-1])
        return (self.status,)

    def cuStreamGetCtx(self, stream: int) -> tuple[int, int]:
        return 0, self.owner.get(stream, self.stack[-1])

    def mine(self, made: Any) -> Any:
        """Notes that something was made in the current context."""
        assert self.stack[-1], "no context is current"
        self.owner[made] = self.stack[-1]
        return made

    def expect(self, *used: Any) -> None:
        """Asserts that all was made in the current context, but for what the caller brought."""
        assert {self.owner[u] for u in used if u in self.owner} <= {self.stack[-1]}

    def cuDeviceGetDefaultMemPool(self, device: int) -> tuple[int, int]:
        return 0, self.new()

    def cuGetErrorName(self, status: Status) -> tuple[int, bytes]:
        return 0, status.name.encode()

    cuGetErrorString = cuGetErrorName

    def cuStreamCreate(self, flags: int) -> tuple[int, int]:
        return 0, self.mine(self.new())

    def direct_cuStreamSynchronize(self, stream: int) -> int:
        assert stream not in DEFAULT_STREAMS or self.stack[-1], "no context is current"
        return self.status

    def cuEventCreate(self, flags: int) -> tuple[int, int]:
        return 0, self.mine(self.new())

    def direct_cuEventRecord(self, event: int, stream: int) -> None:
        # A default stream is that of the current context.
        default = self.stack[-1] if stream in DEFAULT_STREAMS else self.owner[event]
        assert self.owner[event] == self.owner.get(stream, default)

    def cuEventElapsedTime(self, first: int, last: int) -> tuple[int, float]:
        return 0, float(self.depth)

    def cuStreamDestroy(self, stream: int) -> tuple[int]:
        self.ended.add(stream)
        return (0,)

    def cuMemGetInfo(self) -> tuple[int, int, int]:
        return 0, TOTAL - self.used, TOTAL

    # Memory.

    def cuMemAlloc(self, size: int) -> tuple[int, int]:
        self.counts["cuMemAlloc"] += 1
        if self.used + size > TOTAL:
            return Status.CUDA_ERROR_OUT_OF_MEMORY, 0
        room = np.full(size + 512, 0xFE, np.uint8)  # no number: what nobody wrote is seen
        at = -(-room.ctypes.data // 512) * 512
        self.memory[at] = room[at - room.ctypes.data :][:size]
        return 0, self.mine(at)

    def cuMemFree(self, pointer: int) -> tuple[int]:
        self.counts["cuMemFree"] += 1
        self.expect(int(pointer))
        del self.memory[int(pointer)]
        return (0,)

    def cuMemHostAlloc(self, size: int, flags: int) -> tuple[int, int]:
        room = ctypes.create_string_buffer(size + 64)
        self._alive.append(room)
        return 0, -(-ctypes.addressof(room) // 64) * 64

    def cuMemsetD8Async(self, pointer: int, byte: int, size: int, stream: int) -> tuple[int]:
        assert stream not in self.ended
        self.expect(stream)
        ctypes.memset(pointer, byte, size)
        return (0,)

    # Modules and graphs.

    def cuModuleLoadData(self, cubin: bytes) -> tuple[int, str]:
        self.counts["cuModuleLoadData"] += 1
        return 0, self.mine(cubin.decode())

    def cuModuleGetFunction(self, module: str, name: bytes) -> tuple[int, str]:
        handle = Handle(module)
        handle.number = self.new()
        self.functions[handle.number] = handle
        return 0, handle

    CUDA_KERNEL_NODE_PARAMS = Params

    def cuLaunchKernel(self, function: str, *rest: int) -> tuple[int]:
        params = Params()
        params.func, params.kernelParams = function, rest[-2]  # type: ignore[attr-defined]
        self._run(*self._frozen(params))
        return (0,)

    def _run(self, name: str, arguments: list[int]) -> None:
        self.launched.append(name)
        if name in self.faulty:
            self.status = Status.CUDA_ERROR_ILLEGAL_ADDRESS
        if not self.status:
            self.expect(name, *arguments)
            self.kernels[name][1](*arguments)

    def cuGraphCreate(self, flags: int) -> tuple[int, int]:
        number = self.new()
        self.graphs[number] = []
        return 0, number

    CUDA_MEMSET_NODE_PARAMS = Params

    def cuGraphAddMemsetNode(
        self, graph: int, before: list[int], count: int, params: Params, context: int
    ) -> tuple[int, int]:
        return 0, self.new()

    def cuGraphAddKernelNode(
        self, graph: int, before: list[int], count: int, params: Params
    ) -> tuple[int, int]:
        node = self.new()
        self.graphs[graph].append((node, params))
        self._alive.append(params)
        return 0, node

    def cuGraphAddDependencies_v2(
        self, graph: int, before: list[int], after: list[int], edges: list[Any], count: int
    ) -> tuple[int]:
        self.edges.setdefault(graph, []).extend(zip(before, after))
        return (0,)

    # What libraries launch is captured: see `note`.

    CUstreamCaptureMode = Anything()

    def cuStreamBeginCapture(self, stream: int, mode: int) -> tuple[int]:
        self.captured: list[Callable[[], None]] | None = []
        return (0,)

    def cuStreamEndCapture(self, stream: int) -> tuple[int, int]:
        number, found, self.captured = self.new(), self.captured, None
        self.children[number] = found or []
        return 0, number

    def note(self, launch: Callable[[], None]) -> None:
        """A launch by a library: into what is captured, or at once."""
        if self.captured is None:
            launch()
        else:
            self.captured.append(launch)

    def cuGraphAddChildGraphNode(
        self, graph: int, before: list[int], count: int, child: int
    ) -> tuple[int, int]:
        node = self.new()
        self.graphs[graph].append((node, self.children[child]))
        return 0, node

    CUgraphNodeType = Anything()

    def cuGraphGetNodes(self, graph: int, count: int = 0) -> tuple[int, list[Any], int]:
        return 0, [[launch] for launch in self.children[graph]][:count], len(self.children[graph])

    def cuGraphNodeGetType(self, node: Any) -> tuple[int, int]:
        return 0, 0

    def cuGraphKernelNodeGetParams(self, node: Any) -> tuple[int, Any]:
        return 0, node

    def cuGraphExecKernelNodeSetParams(self, ready: int, node: int, params: Any) -> tuple[int]:
        self.counts["updates of libraries"] += 1
        self.ready[ready][node] = params
        return (0,)

    def cuGraphExecChildGraphNodeSetParams(self, ready: int, node: int, child: int) -> tuple[int]:
        self.counts["updates of libraries"] += 1
        self.ready[ready][node] = self.children[child]
        return (0,)

    def cuGraphInstantiate(self, graph: int, flags: int) -> tuple[int, int]:
        self.counts["cuGraphInstantiate"] += bool(self.graphs[graph])
        number = self.new()
        self.ready[number] = {node: self._frozen(params) for node, params in self.graphs[graph]}
        self.edges[number] = self.edges.get(graph, [])
        return 0, number

    def _frozen(self, params: Any) -> Any:
        """A kernel, and its arguments as they are now."""
        if isinstance(params, list):
            return params
        count, _ = self.kernels[params.func]
        places = (ctypes.c_uint64 * count).from_address(params.kernelParams)
        return params.func, [ctypes.c_uint64.from_address(p).value for p in places]

    # What is called directly.

    def cuGetProcAddress(self, name: bytes, version: int, flags: int) -> tuple[int, int, int]:
        text = name.decode()
        if text not in self._addresses:
            table = driver._QUICK if text in driver._QUICK else driver._SLOW
            run = getattr(self, f"direct_{text}", lambda *arguments: 0)

            def counted(*arguments: Any) -> int:
                self.counts[text] += 1
                return int(run(*(a or 0 for a in arguments)) or 0)

            made = ctypes.CFUNCTYPE(ctypes.c_int, *table[text])(counted)
            self._alive.append(made)
            self._addresses[text] = ctypes.cast(made, ctypes.c_void_p).value or 0
        return 0, self._addresses[text], 0

    def direct_cuMemAllocAsync(self, place: int, size: int, stream: int) -> int:
        status, pointer = self.cuMemAlloc(size)
        ctypes.c_uint64.from_address(place).value = pointer
        return status

    def direct_cuMemFreeAsync(self, pointer: int, stream: int) -> None:
        self.cuMemFree(pointer)

    def _copy(self, target: int, source: int, size: int, stream: int) -> None:
        assert stream not in self.ended
        self.expect(stream, target, source)
        ctypes.memmove(target, source, size)

    direct_cuMemcpyDtoDAsync = direct_cuMemcpyDtoHAsync = direct_cuMemcpyHtoDAsync = _copy

    def direct_cuGraphExecKernelNodeSetParams(self, graph: int, node: int, params: int) -> None:
        found = next(p for p in self._alive if id(p) == params)
        self.ready[graph][node] = self._frozen(found)

    def direct_cuLaunchKernelEx(
        self, configuration: int, function: int, arguments: int, extra: int
    ) -> None:
        found = Configuration.from_address(configuration)
        assert found.stream not in self.ended and all((*found.grid, *found.block))
        params = Params()
        params.func, params.kernelParams = self.functions[function], arguments  # type: ignore[attr-defined]
        self._run(*self._frozen(params))

    def direct_cuGraphLaunch(self, graph: int, stream: int) -> None:
        self.expect(stream)
        nodes, edges = self.ready[graph], self.edges[graph]
        depths: dict[int, int] = {}
        while len(depths) < len(nodes):
            # Any order that the edges allow.
            free = [n for n in nodes if n not in depths]
            free = [n for n in free if all(a in depths for a, b in edges if b == n)]
            number = self.random.choice(free)
            depths[number] = 1 + max((depths[a] for a, b in edges if b == number), default=0)
            node = nodes[number]
            if isinstance(node, list):
                for launch in node:
                    launch()
            else:
                self._run(*node)
        self.depth = max(depths.values(), default=0)
