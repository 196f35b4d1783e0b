"""A GPU that is not there, on the driver of stub_driver.py: a kernel is its step's reference.

`with stubbed() as driver` lets `device="cuda"` open it; `driver` counts what it was asked for.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar
from weakref import WeakSet

import numpy as np
import pytest

from tests.targets.cuda.stub_driver import Driver
from whet.ir.evaluate import evaluate
from whet.ir.graph import Graph, Input, make
from whet.ir.sizes import substitute, symbol
from whet.ir.types import map_sizes
from whet.ops.movement import Gather
from whet.plan.plan import Plan, Step, nbytes
from whet.targets.cuda import device as gpus
from whet.targets.cuda import driver
from whet.targets.cuda.compile import Function, pack
from whet.targets.cuda.ways import Way
from whet.targets.special import Special

FEW = 4
"""Up to this number of the first size the first way to run a kernel is taken."""


def _array(address: int, kind: Any) -> np.ndarray:
    """A tensor at an address."""
    room = (ctypes.c_uint8 * nbytes(kind)).from_address(address)
    return np.frombuffer(room, kind.numpy).reshape([int(n) for n in kind.shape])


def behaviour(step: Step, sizes: Mapping[str, int] = {}) -> Callable[..., None]:
    """What a step's kernel does, by the references of its operators; it knows some sizes, and is
    told the others."""
    # What a step reads of its own result, as a scan does, its reference has in itself.
    read = [v for v in step.reads if v not in step.writes]
    inputs = {v: make(Input(f"read {n}", v.type), ())[0] for n, v in enumerate(read)}
    whole = Graph(tuple(inputs.values()), step.writes).substitute(inputs)
    whole = replace(whole, inputs=tuple(inputs.values()))
    told = [] if sizes or step.kernel is None else step.kernel.sizes

    def run(*arguments: int) -> None:
        count = len(step.reads) + len(step.writes)
        addresses, error = arguments[:count], arguments[count]
        known_sizes = {**sizes, **dict(zip(told, arguments[count + 1 :]))}
        graph = whole.bind(known_sizes)
        extents = [v.inputs[0].shape[v.op.axis] for v in graph.values if isinstance(v.op, Gather)]
        kinds = [
            map_sizes(v.tensor, lambda n: substitute(n, known_sizes))
            for v in (*step.reads, *step.writes)
        ]
        arrays = [_array(a, kind) for a, kind in zip(addresses, kinds)]
        known = dict(zip(step.reads, arrays))
        given = dict(zip(graph.inputs, (known[value] for value in inputs)))
        for index in (a for a in arrays if extents and a.dtype == np.int64):
            if (index >= extents[0]).any():
                ctypes.c_int32.from_address(error).value = 1
                return
        results = evaluate(graph, given)
        for array, result in zip(arrays[len(step.reads) :], results):
            array[...] = result

    return run


class StubDevice(gpus.Device):
    """A GPU whose kernels are Python."""

    stub: Driver
    opened: ClassVar[WeakSet[StubDevice]] = WeakSet()

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.opened.add(self)

    def executable(self, plan: Plan, threads: int, before: Plan | None = None) -> Any:
        self._steps: dict[Any, Step] = getattr(self, "_steps", {})
        for step in (*plan.steps, *(before.steps if before else ())):
            if step.kernel is not None and step.kernel not in self._objects:
                self._steps[step.kernel] = step
                self._objects[step.kernel] = self._made(step)
        return super().executable(plan, threads, before)

    def compile(self, kernels: Sequence[Any], idle: bool = False, moving: Any = ()) -> None:
        for kernel in kernels:
            if isinstance(kernel, Special) and self._found(self.key(kernel)) is None:
                made = self._made(self._steps[kernel.kernel], dict(kernel.sizes))
                self._objects[kernel] = made
        super().compile(kernels, idle, moving)

    def compile_ways(self, ways: Sequence[Way]) -> dict[Way, bytes]:
        self.ways = [*getattr(self, "ways", []), *ways]
        steps = {way: self._steps[way.kernel] for way in ways}
        return {w: pack([self._function(s, dict(w.sizes), rank=w.rank)]) for w, s in steps.items()}

    def _made(self, step: Step, sizes: Mapping[str, int] = {}) -> bytes:
        """A kernel's code; for open sizes there are two ways to run it, and none where results
        have no elements."""
        if all(0 in v.shape for v in step.writes):
            return pack([])
        told = [] if sizes or step.kernel is None else list(step.kernel.sizes)
        if not told:
            return pack([self._function(step, sizes)])
        few = symbol(told[0]), FEW
        return pack([self._function(step, {}, few), self._function(step, {})])

    def _function(
        self,
        step: Step,
        sizes: Mapping[str, int],
        until: tuple[Any, int] | None = None,
        rank: int = 0,
    ) -> Function:
        told = [] if sizes or step.kernel is None else [symbol(name) for name in step.kernel.sizes]
        kind = "special" if sizes else "few" if until else "many" if told else "k"
        name = f"{f'way{rank}' if rank else kind} {len(self.stub.kernels)}"
        count = len(step.reads) + len(step.writes)
        self.stub.kernels[name] = count + 1 + len(told), behaviour(step, sizes)
        if self.stub.faulty & set(step.nodes):
            self.stub.faulty.add(name)
        checks = any(isinstance(v.op, Gather) for v in Graph((), step.writes).values)
        grid = (told[0], 1, 1) if told else (1, 1, 1)
        slots = (*range(count), "error", *told)
        more = checks, True, False, tuple(told), until
        return Function(name, name.encode(), grid, slots, 32, 0, 0, 0, 0, *more)


@contextmanager
def stubbed(devices: int = 1) -> Iterator[Driver]:
    """Within it there are so many GPUs."""
    made = Driver(devices)
    bindings = types.ModuleType("cuda.bindings")
    bindings.driver = made  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cuda", types.ModuleType("cuda"))
        patch.setitem(sys.modules, "cuda.bindings", bindings)
        patch.setattr(StubDevice, "stub", made, raising=False)
        patch.setattr(gpus, "Device", StubDevice)
        patch.setattr(driver.Context, "_open", {})
        driver.api.cache_clear()
        driver.direct.cache_clear()
        try:
            yield made
        finally:
            threads = [t for d in list(StubDevice.opened) for t in (d.background, d.measuring)]
            while any(thread.is_busy for thread in threads):
                time.sleep(0.01)
            _forget()


def _forget() -> None:
    """Lets everything end while the driver is there."""
    driver.Context._open.clear()
    gc.collect()
    driver.api.cache_clear()
    driver.direct.cache_clear()


class Tensor:
    """Another library's tensor on the device, by DLPack's older form."""

    def __init__(self, stub: Driver, array: np.ndarray, number: int = 0) -> None:
        self.stub, self.array, self.number = stub, np.ascontiguousarray(array), number
        with driver.Context.of(number):
            _, self.pointer = stub.cuMemAlloc(self.array.nbytes)
        ctypes.memmove(self.pointer, self.array.ctypes.data, self.array.nbytes)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.number

    def __dlpack__(self, stream: Any = None, **ignored: Any) -> Any:
        from whet.targets.cuda.array import DeviceArray

        context = driver.Context.of(self.number)
        if self.stub.stack[-1] != context.number:  # so does PyTorch
            raise BufferError("Can't export tensors on a different CUDA device index.")
        array = self.array
        made = DeviceArray(context, self.pointer, array.dtype, array.shape, self)
        return made.__dlpack__(stream=-1)


class TorchTensor(Tensor):
    """The same with PyTorch's attributes."""

    __module__ = "torch"
    is_cuda = True

    @property
    def dtype(self) -> str:
        return f"torch.{self.array.dtype}"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def data_ptr(self) -> int:
        self.stub.counts["data_ptr"] += 1
        return self.pointer

    def get_device(self) -> int:
        return self.number

    def is_contiguous(self) -> bool:
        return True
