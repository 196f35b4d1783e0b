"""Machine code on a device, its launches, and many launches as one graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from whet.errors import DeviceError
from whet.targets.cuda.compile import Function
from whet.targets.cuda.driver import Context, Stream, api, check, direct, failure
from whet.targets.cuda.library import RoutineCall, RoutineNode
from whet.targets.cuda.order import in_order

PROGRAMMATIC_PORT = 1  # CU_GRAPH_KERNEL_NODE_PORT_PROGRAMMATIC, a macro of cuda.h


class Module:
    """Machine code on a device, until nothing refers to it."""

    def __init__(self, context: Context, cubin: bytes, name: str, shared: int) -> None:
        self.context = context
        with context:
            self._load(cubin, name, shared)

    def _load(self, cubin: bytes, name: str, shared: int) -> None:
        driver = api()
        self.handle = check(driver.cuModuleLoadData(cubin), f"loading {name}")
        function = driver.cuModuleGetFunction(self.handle, name.encode())
        self.function = check(function, f"loading {name}")
        if hasattr(driver, "cuFuncLoad"):  # else the first launch loads it, which takes longer
            check(driver.cuFuncLoad(self.function), f"loading {name}")
        if shared > 48 << 10:
            most = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            check(driver.cuFuncSetAttribute(self.function, most, shared), f"loading {name}")

    def call(self, function: Function, arguments: np.ndarray, name: str) -> Call:
        """A launch with arguments."""
        x, y, z = map(int, function.grid)
        threads, shared = function.threads, function.shared
        return Call(self, (x, y, z), threads, shared, arguments, name, function.waits)

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            with suppress(DeviceError), self.context:
                api().cuModuleUnload(self.handle)


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

    def add(self, graph: Any) -> KernelNode:
        """Puts it into a graph."""
        return KernelNode(self, graph)


class KernelNode:
    """A launch in a graph."""

    def __init__(self, call: Call, graph: Any) -> None:
        driver = api()
        self.params = params = driver.CUDA_KERNEL_NODE_PARAMS()
        params.func = call.module.function
        params.gridDimX, params.gridDimY, params.gridDimZ = call.grid
        params.blockDimX, params.blockDimY, params.blockDimZ = call.threads, 1, 1
        params.sharedMemBytes = call.shared
        params.kernelParams = call.addresses.ctypes.data
        added = driver.cuGraphAddKernelNode(graph, [], 0, params)
        self.handle = check(added, "adding to a graph")
        self._numbers = int(self.handle), int(params.getPtr())

    def update(self, ready: Any) -> None:
        """Takes over changed arguments."""
        if status := direct().cuGraphExecKernelNodeSetParams(int(ready), *self._numbers):
            raise failure(status, "updating a graph")


class OneByOne:
    """Launches each by itself and waited for, so that one that fails is named."""

    def __init__(self, calls: Sequence[Call | RoutineCall]) -> None:
        self.calls = tuple(calls)

    def update(self, number: int) -> None:
        """Takes over the changed arguments of a launch, which are read anew each time."""

    def launch(self, stream: Stream) -> None:
        """Runs them."""
        for call in self.calls:
            call.launch(stream)
            stream.synchronize(f"running {call.name}")


class Graph:
    """Launches as one: in order, or each behind those that `after` names.

    A launch may start before the one that it waits for has ended only where nothing else waits for
    that, and it for nothing else: what waits on the device does so for one launch before it.
    """

    def __init__(
        self,
        calls: Sequence[Call | RoutineCall],
        after: Sequence[tuple[int, ...]] | None = None,
        pause: Callable[[], object] = lambda: None,
    ) -> None:
        driver = api()
        self.calls = tuple(calls)  # whose arguments a launch reads
        self.graph = check(driver.cuGraphCreate(0), "making a graph")
        self.nodes: list[KernelNode | RoutineNode] = []
        self.early = 0
        """Launches that may start before the one before them has ended."""
        before = in_order(len(calls)) if after is None else after
        behind = Counter(earlier for found in before for earlier in found)
        for number, call in enumerate(calls):
            pause()
            node = call.add(self.graph)
            alone = len(before[number]) == 1 and call.waits
            for earlier in before[number]:
                waits = alone and behind[earlier] == 1
                waits = waits and isinstance(self.nodes[earlier], KernelNode)
                self._connect(self.nodes[earlier].handle, node.handle, waits)
            self.nodes.append(node)
        self.ready = check(driver.cuGraphInstantiate(self.graph, 0), "making a graph")
        self.number = int(self.ready)

    def _connect(self, before: Any, after: Any, waits: bool) -> None:
        """One node behind another: at its end, or, where it waits by itself, once all of the
        other's blocks let it start (CUDA Programming Guide, Programmatic Dependent Launch)."""
        driver = api()
        edge = driver.CUgraphEdgeData()
        if waits:
            self.early += 1
            edge.from_port = PROGRAMMATIC_PORT
            edge.type = driver.CUgraphDependencyType.CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC.value
        connect = getattr(driver, "cuGraphAddDependencies_v2", driver.cuGraphAddDependencies)
        check(connect(self.graph, [before], [after], [edge], 1), "adding to a graph")

    def update(self, number: int) -> None:
        """Takes over the changed arguments of a launch."""
        self.nodes[number].update(self.ready)

    def launch(self, stream: Stream) -> None:
        """Runs it."""
        if status := direct().cuGraphLaunch(self.number, stream.number):
            raise failure(status, "launching a graph")

    def __del__(self) -> None:
        driver = api()
        if hasattr(self, "ready"):
            driver.cuGraphExecDestroy(self.ready)
        if hasattr(self, "graph"):
            driver.cuGraphDestroy(self.graph)
