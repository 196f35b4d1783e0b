"""Machine code on a device, its launches, and many launches as one graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whet.targets.cuda.driver import Context, Stream, api, check, direct, failure

PROGRAMMATIC_PORT = 1  # CU_GRAPH_KERNEL_NODE_PORT_PROGRAMMATIC, a macro of cuda.h


class Module:
    """Machine code on a device, until nothing refers to it."""

    def __init__(self, context: Context, cubin: bytes, name: str, shared: int) -> None:
        driver = api()
        self.context = context
        context.use()
        self.handle = check(driver.cuModuleLoadData(cubin), f"loading {name}")
        function = driver.cuModuleGetFunction(self.handle, name.encode())
        self.function = check(function, f"loading {name}")
        if shared > 48 << 10:
            most = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            check(driver.cuFuncSetAttribute(self.function, most, shared), f"loading {name}")

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            driver = api()
            driver.cuCtxSetCurrent(self.context.handle)
            driver.cuModuleUnload(self.handle)


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
        self.calls = tuple(calls)  # whose arguments a launch reads
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
        self.number = int(self.ready)
        self._numbers = [(int(n), int(p.getPtr())) for n, p in zip(self.nodes, self.params)]

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
        node, params = self._numbers[number]
        if status := direct().cuGraphExecKernelNodeSetParams(self.number, node, params):
            raise failure(status, "updating a graph")

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
