"""Kernels of NVIDIA's own libraries, where they are installed: ways to run a kernel among others.

None of them is ever needed. Their launches are captured into a graph, and that into a run's graph,
so that they take part in it as our own do. What is kept of one is the library's name and version,
and how it was asked: with another version, or without the library, the kernel is made anew.
"""

from __future__ import annotations

import ctypes
import json
import threading
from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from whet.errors import DeviceError
from whet.targets.cuda.driver import Context, Stream, api, check
from whet.targets.cuda.source import Slot

if TYPE_CHECKING:
    from whet.targets.cuda.compile import Function

MARK = b"whet library "
WORKSPACE = 4 << 20  # bytes that a library may use while a kernel runs

FILES = {"cublasLt": (13, 12), "cudnn": (9,)}
"""Libraries, and the versions of their interface that are known here."""


@cache
def opened(name: str) -> ctypes.CDLL | None:
    """A library of NVIDIA's; None where it is not installed."""
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        return ctypes.CDLL(load_nvidia_dynamic_lib(name).abs_path)
    except Exception:  # the finder has errors of its own for what is not there
        return _by_the_linker(name)


def _by_the_linker(name: str) -> ctypes.CDLL | None:
    for version in FILES[name]:
        try:
            return ctypes.CDLL(f"lib{name}.so.{version}")
        except OSError:
            continue
    return None


def expect(status: int, doing: str) -> None:
    """Raises DeviceError for what a library refuses."""
    if status:
        raise DeviceError(f"{doing}: status {status}")


class Way(Protocol):
    """How a library runs one kernel."""

    name: str

    def run(self, addresses: Iterable[int], stream: int) -> None:
        """Asks for it on a stream; the addresses are those of the slots, in order."""


class Routine:
    """A library's way on a device, in the place of a module."""

    def __init__(self, context: Context, way: Way) -> None:
        self.context, self.way = context, way
        self.lock = threading.Lock()

    def call(self, function: Function, arguments: np.ndarray, name: str) -> RoutineCall:
        """A launch with arguments."""
        return RoutineCall(self, arguments, name)


class RoutineCall:
    """A launch of a library's: as a part of a graph it is a graph itself."""

    waits = False

    def __init__(self, routine: Routine, arguments: np.ndarray, name: str) -> None:
        self.routine, self.arguments, self.name = routine, arguments, name

    def launch(self, stream: Stream) -> None:
        """Runs it by itself."""
        with self.routine.lock:
            self.routine.way.run(map(int, self.arguments), stream.number)

    def add(self, graph: Any) -> RoutineNode:
        """Puts it into a graph."""
        return RoutineNode(self, graph)

    def captured(self) -> Any:
        """What it launches, as a graph."""
        driver, context = api(), self.routine.context
        stream = context.lend()
        mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        check(driver.cuStreamBeginCapture(stream.handle, mode), f"capturing {self.name}")
        try:
            self.launch(stream)
        finally:
            ended = driver.cuStreamEndCapture(stream.handle)
            context.streams.append(stream)
        return check(ended, f"capturing {self.name}")


class RoutineNode:
    """A library's launch in a graph: one kernel's node where it is one kernel, else a graph's."""

    def __init__(self, call: RoutineCall, graph: Any) -> None:
        driver = api()
        self.call, child = call, call.captured()
        try:
            kernel = _only_kernel(child)
            self.is_kernel = kernel is not None
            if kernel is None:
                added = driver.cuGraphAddChildGraphNode(graph, [], 0, child)
                self.handle = check(added, "adding to a graph")
                return
            params = check(driver.cuGraphKernelNodeGetParams(kernel), "adding to a graph")
            added = driver.cuGraphAddKernelNode(graph, [], 0, params)
            self.handle = check(added, "adding to a graph")
            copied = driver.cuGraphKernelNodeCopyAttributes(self.handle, kernel)
            check(copied, "adding to a graph")
        finally:
            driver.cuGraphDestroy(child)  # all of it was copied

    def update(self, ready: Any) -> None:
        """Takes over changed arguments."""
        driver, child = api(), self.call.captured()
        try:
            if self.is_kernel:
                kernel = _only_kernel(child)
                params = check(driver.cuGraphKernelNodeGetParams(kernel), "updating a graph")
                changed = driver.cuGraphExecKernelNodeSetParams(ready, self.handle, params)
            else:
                changed = driver.cuGraphExecChildGraphNodeSetParams(ready, self.handle, child)
            check(changed, "updating a graph")
        finally:
            driver.cuGraphDestroy(child)


def _only_kernel(graph: Any) -> Any:
    """A graph's node, where it is a kernel and the only one."""
    driver = api()
    _, count = check(driver.cuGraphGetNodes(graph), "reading a graph")
    if count != 1:
        return None
    nodes, _ = check(driver.cuGraphGetNodes(graph, count), "reading a graph")
    kind = check(driver.cuGraphNodeGetType(nodes[0]), "reading a graph")
    is_kernel = kind == driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_KERNEL
    return nodes[0] if is_kernel else None


def packed(name: str, version: int, slots: tuple[Slot, ...], how: dict[str, Any]) -> bytes:
    """A library's way as an object, as compiled kernels are; `how` is plain."""
    from whet.targets.cuda.compile import Function, pack

    said = MARK + json.dumps({"library": name, "version": version, "how": how}).encode()
    size = int(how.get("workspace", 0))
    return pack([Function(name, said, (1, 1, 1), slots, 0, 0, 0, 0, size, False, False, False)])


def is_library(cubin: bytes) -> bool:
    """Whether an object's function is a library's."""
    return cubin.startswith(MARK)


def restored(context: Context, function: Function) -> Routine:
    """What was packed, on a device; raises DeviceError where the library is another now."""
    said = json.loads(function.cubin[len(MARK) :])
    maker = MAKERS.get(said["library"])
    if maker is None:
        raise DeviceError(f"{said['library']} is not known here")
    with context:
        return Routine(context, maker(context, said["version"], said["how"]))


def usable(cubin: bytes) -> bool:
    """Whether a library's way can be used here: the same version of it is installed."""
    from whet.targets.cuda import cublas, cudnn

    said = json.loads(cubin[len(MARK) :])
    versions = {"cublasLt": cublas.version, "cudnn": cudnn.version}
    found = versions.get(said["library"])
    return found is not None and found() == said["version"]


def _cublas(context: Context, version: int, how: dict[str, Any]) -> Way:
    from whet.targets.cuda import cublas

    return cublas.Way(context, version, how)


def _cudnn(context: Context, version: int, how: dict[str, Any]) -> Way:
    from whet.targets.cuda import cudnn

    return cudnn.Way(context, version, how)


MAKERS: dict[str, Callable[[Context, int, dict[str, Any]], Way]] = {
    "cublasLt": _cublas,
    "cudnn": _cudnn,
}
