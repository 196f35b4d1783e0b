"""Runs the kernels of small graphs, thread after thread: inputs end at fences, and what is made
lies in poisoned memory between guards."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.fences import fenced
from tests.levels import architecture
from whet.ir.evaluate import evaluate
from whet.ir.graph import Graph, Input, Value, make
from whet.ir.types import TensorType
from whet.plan.plan import Plan, make_plan, nbytes
from whet.targets.cpu import codegen, host
from whet.targets.cpu.device import Device

GUARD = 128  # bytes on both sides of each buffer that must stay as they are
POISON = 0xA5


@cache
def device(level: str) -> Device:
    """This processor held down to a level; skips the test where it has less."""
    return Device(architecture(level))


def tensor(name: str, dtype: str, *shape: int) -> Value:
    """An input of a graph."""
    return make(Input(name, TensorType(dtype, shape)), ())[0]


def legal(graph: Graph, to: Device) -> Graph:
    """The graph in the device's terms."""
    while (new := graph.map(to.legalize)) is not graph:
        graph = new
    return graph


def plan(outputs: Sequence[Value], inputs: Sequence[Value], level: str) -> Plan:
    """The plan of a graph at a level."""
    to = device(level)
    return make_plan(legal(Graph(tuple(inputs), tuple(outputs)), to), to.capabilities)


def memory(nbytes: int) -> NDArray[np.uint8]:
    """Poisoned bytes with a guard on both sides; the middle is aligned as buffers are."""
    return host.aligned_memory(nbytes + 2 * GUARD)


def run(
    outputs: Sequence[Value], feeds: dict[Value, Any], level: str, threads: int = 1
) -> list[NDArray[Any]]:
    """The outputs by the level's kernels, whose `threads` shares run one after the other."""
    p = plan(outputs, tuple(feeds), level)
    place = {v: fenced(np.asarray(a, v.tensor.numpy)) for v, a in feeds.items()}
    guarded: dict[Value, NDArray[np.uint8]] = {}
    for step in p.steps:
        assert step.kernel is not None, f"{step.name} runs on the host"
        for value in step.writes:
            guarded[value] = buffer = memory(nbytes(value.tensor))
            buffer[:] = POISON
            place[value] = buffer[GUARD:-GUARD].view(value.tensor.numpy).reshape(value.shape)
        _run_step(step, place, level, threads)
    for value, buffer in guarded.items():
        assert (buffer[:GUARD] == POISON).all(), f"wrote before {value.op}"
        assert (buffer[-GUARD:] == POISON).all(), f"wrote behind {value.op}"
    return [place[o] for o in p.graph.outputs]


def _run_step(step: Any, place: dict[Value, NDArray[Any]], level: str, threads: int) -> None:
    address = device(level).code(step.kernel)
    buffers = [place[v] for v in (*step.reads, *step.writes)]
    before = [b.copy() for b in buffers[: len(step.reads)]]
    error = ctypes.c_int64(0)
    slots = []
    for slot in codegen.slots(step.kernel):
        if slot == "error":
            slots.append(ctypes.addressof(error))
        elif slot is None:
            slots.append(0)
        else:
            assert isinstance(slot, tuple)
            slots.append(buffers[slot[0]].ctypes.data + slot[1])
    arguments = (ctypes.c_int64 * len(slots))(*slots)
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(address)
    for thread in range(threads):
        call(ctypes.addressof(arguments), thread, threads)
    assert error.value == 0
    for buffer, copy in zip(buffers, before):
        assert buffer.tobytes() == copy.tobytes(), "a kernel wrote to its input"


def expected(outputs: Sequence[Value], feeds: dict[Value, Any]) -> list[NDArray[Any]]:
    """What the operators' references give."""
    return evaluate(Graph(tuple(feeds), tuple(outputs)), feeds)
