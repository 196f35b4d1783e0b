"""The end of a template: the kernel's epilogue, then a store through its output view."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from whet.ir.sizes import Size, coefficient
from whet.plan.kernel import Axis, Expression, Hole, Template
from whet.plan.lower import loop_index
from whet.targets.cpu import arithmetic
from whet.targets.cpu.expressions import Emitter, Place
from whet.targets.cpu.llvm import Function, element_bytes
from whet.targets.cpu.named import NamedSizes
from whet.targets.cpu.reductions import lane_mask

ARGUMENTS = "%args"


def buffer(f: Function, number: int) -> str:
    """The address of a kernel's buffer; slot 0 of the argument block is the error word."""
    return f.load("ptr", ARGUMENTS, 8 * (number + 1))


def named_sizes(kernel: Template) -> NamedSizes:
    """The sizes that a run tells: behind the buffers in the argument block."""
    return NamedSizes(kernel.sizes, 1 + len(kernel.buffers), ARGUMENTS)


def output_offset(kernel: Template) -> Size:
    """Where an element of the output lies, as an expression over the kernel's axes."""
    offset: Size = kernel.output.offset
    for axis, stride in zip(kernel.axes, kernel.output.strides):
        offset = offset + loop_index(axis.name, axis.size) * stride
    return offset


class Results:
    """Emits the end of a template, vector by vector: `lanes` neighbours along the axis `vector`."""

    def __init__(
        self,
        f: Function,
        kernel: Template,
        vector: Axis,
        lanes: int,
        epilogue: Expression,
        offset: Size,
    ) -> None:
        self.f, self.vector, self.lanes = f, vector, lanes
        self.value, self.offset, self.dtype = epilogue, offset, kernel.output.dtype
        buffers = [buffer(f, n) for n in range(len(kernel.buffers))]
        self.base = buffers[kernel.output.buffer]
        self.e = Emitter(f, buffers, lanes, f.load("ptr", ARGUMENTS, 0))
        self.e.places = named_sizes(kernel).places(f)

    @contextmanager
    def at(self, places: Mapping[str, Place]) -> Iterator[None]:
        """Within it the loop indices stand there; what depends on them alone is computed once."""
        with self.e.scope(places={**self.e.places, **places}):
            self.e.hoist(self.value, frozenset(self.e.places))
            yield

    def store(self, places: Mapping[str, Place], result: str, count: int) -> None:
        """Stores the first `count` lanes of a result vector that begins at these indices."""
        e, f = self.e, self.f
        mask = lane_mask(f, count, self.lanes) if count < self.lanes else None
        scope = {"places": {**e.places, **places}, "mask": mask, "hole": (result, self.lanes)}
        with e.scope(vector=self.vector.name, lanes=self.lanes, **scope):
            value = arithmetic.to_storage(f, e.widened(self.value), self.dtype, self.lanes)
            kind = arithmetic.storage_type(self.dtype, self.lanes)
            at, delta = e._address(self.dtype, self.base, self.offset)
            step = coefficient(self.offset, self.vector.name) if self.vector.size != 1 else 1
            if step != 1:
                self._scatter(kind, value, at, delta, step, count)
            elif mask is not None:
                f.masked_store(kind, value, mask, at, delta)
            else:
                f.store(kind, value, at, delta)

    def _scatter(
        self, kind: str, value: str, at: str, delta: int, step: Size | None, count: int
    ) -> None:
        assert isinstance(step, int)
        element = arithmetic.STORAGE[self.dtype]
        for lane in range(count):
            one = self.f.extract(kind, value, lane)
            self.f.store(element, one, at, delta + lane * step * element_bytes(element))


def is_plain(epilogue: Expression) -> bool:
    """Whether results are stored as they are."""
    return isinstance(epilogue, Hole)
