"""Convolutions and products with a constant weight, as the planner sees them: packed, with an
epilogue."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, fields, replace
from typing import Any

import numpy as np

from whet.ir.graph import Op, Value, constant, operator
from whet.ir.sizes import Size, is_less, product
from whet.ir.types import TensorType
from whet.ops.contract import Convolution, MatMul
from whet.ops.elementwise import Mul
from whet.ops.movement import Pad, Transpose, reshape, transpose
from whet.plan.group import contiguous as contiguous_view
from whet.plan.kernel import Axis, Load, Nest, Store, Template, View, walk
from whet.plan.likely import likely_value
from whet.plan.loops import merge
from whet.plan.lower import flatten, loop_index
from whet.targets.cpu import arithmetic
from whet.targets.cpu.architecture import Architecture
from whet.targets.cpu.expressions import Emitter, Place
from whet.targets.cpu.llvm import Function, element_bytes
from whet.targets.cpu.templates import convolution as kernels
from whet.targets.cpu.templates.dense import taps_innermost
from whet.targets.cpu.templates.epilogue import FIRST_BUFFER, Epilogue, Origin, Position
from whet.targets.cpu.templates.matmul import FLOATS, cast
from whet.targets.cpu.templates.packing import Packing
from whet.targets.cpu.templates.schedule import Schedule
from whet.targets.cpu.templates.specification import Convolution as Specification
from whet.targets.cpu.templates.specification import contiguous

MOST_STRIDED_CHANNELS = 4
"""With more channels than that, a copy with the channels side by side is faster than reading them
apart."""

LESS_WORK = 8
"""How many times as many elements x must have as the weights, which come from further away."""


@operator
class PackedConvolution(Op):
    """Convolution of x[N, *S, C] with a weight packed for one schedule; see
    ops.contract.Convolution."""

    kernel: tuple[int, ...]
    filters: int
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    groups: int
    order: tuple[int, ...]
    """x as it is given, transposed by this order, is channels-last."""
    schedule: tuple[int, ...]

    def infer(self, x: TensorType, packed: TensorType) -> TensorType:
        spec = self.specification(contiguous(x.shape), x.shape)
        return x.with_shape(spec.batch, *spec.outputs, self.filters)

    def operations(self, x: TensorType, packed: TensorType) -> int:
        return self.specification(contiguous(x.shape), x.shape).flops

    def images(self, shape: tuple[Size, ...]) -> tuple[Size, ...]:
        """The spatial sizes of an x of some shape."""
        return tuple(shape[i] for i in self.order[1:-1])

    def specification(self, strides: tuple[Size, ...], shape: tuple[Size, ...]) -> Specification:
        """The kernel that is wanted for an x of some strides and shape."""
        shape = tuple(shape[i] for i in self.order)
        x_strides = tuple(strides[i] for i in self.order)
        return Specification(
            batch=shape[0],
            size=shape[1:-1],
            channels=known(shape[-1]),
            filters=self.filters,
            kernel=self.kernel,
            steps=self.strides,
            dilations=self.dilations,
            before=self.before,
            after=self.after,
            groups=self.groups,
            bias=False,
            x_strides=x_strides,
        )

    def likely(self, shape: tuple[Size, ...]) -> Specification:
        """The kernel for the likely sizes of an x of some shape, where a window fits at least."""
        sizes = [likely_value(size) for size in shape]
        windows = zip(self.order[1:-1], self.kernel, self.dilations, self.before, self.after)
        for axis, taps, dilation, before, after in windows:
            sizes[axis] = max(sizes[axis], (taps - 1) * dilation + 1 - before - after)
        return self.specification(contiguous(tuple(sizes)), tuple(sizes))


@operator
class PackedProduct(Op):
    """x[..., K] times a weight [K, N], packed for one schedule."""

    columns: int
    schedule: tuple[int, ...]

    def infer(self, x: TensorType, packed: TensorType) -> TensorType:
        return x.with_shape(*x.shape[:-1], self.columns)

    def operations(self, x: TensorType, packed: TensorType) -> Size:
        return 2 * product(x.shape) * self.columns

    def specification(self, strides: tuple[Size, ...], shape: tuple[Size, ...]) -> Specification:
        """The kernel that is wanted for an x of some strides and shape: a convolution of one
        tap."""
        lead = shape[:-1]
        while len(lead) < 2:
            lead, strides = (1, *lead), (0, *strides)
        return Specification(
            batch=lead[0],
            size=lead[1:],
            channels=known(shape[-1]),
            filters=self.columns,
            kernel=(1,) * len(lead[1:]),
            bias=False,
            x_strides=strides,
        )


Packed = PackedConvolution | PackedProduct


def pack(weight: Value, packing: Packing) -> Value:
    """A channels-last weight in a kernel's layout, as an expression over the weight."""
    zero = constant(0, weight.dtype)
    for axis, matrix in packing.matrices:
        weight = _apply_matrix(weight, axis, matrix)
    wide = reshape(weight, *packing.shape)
    after = tuple(more - size for size, more in zip(packing.shape, packing.padded))
    if any(after):
        wide = Pad((0,) * len(after), after)(wide, zero)
    return transpose(reshape(wide, *packing.split), *packing.order)


def without_gate(x: Value, weights: int) -> tuple[Value, Value | None]:
    """x without a factor that is one number for each of its channels, and that factor: where the
    weights that it can go into instead are so few that this is less work."""
    if not isinstance(x.op, Mul) or LESS_WORK * weights > likely_value(product(x.shape)):
        return x, None
    for place, gate in enumerate(x.inputs):
        rest = x.inputs[1 - place]
        assert gate is not None and rest is not None
        one_by_channel = all(s == 1 for s in gate.shape[:-1]) and gate.shape[-1:] == x.shape[-1:]
        if one_by_channel and rest.shape == x.shape:
            return rest, gate
    return x, None


def scaled(packed: Value, packing: Packing, gate: Value | None) -> Value:
    """Packed weights with each input channel times its factor."""
    if gate is None:
        return packed
    shape = [1] * packed.rank
    shape[packing.order.index(len(packing.split) - 1)] = -1
    channels = gate.shape[-1]
    y: Value = Mul()(packed, reshape(gate, *(channels if n == -1 else n for n in shape)))
    return y


def _apply_matrix(weight: Value, axis: int, matrix: tuple[tuple[float, ...], ...]) -> Value:
    """new[i] = the sum over j of matrix[i][j] * old[j] along an axis."""
    front = (axis, *(i for i in range(weight.rank) if i != axis))
    moved = transpose(weight, *front)
    rows = reshape(moved, moved.shape[0], product(moved.shape[1:]))
    made = MatMul()(constant(np.array(matrix), weight.dtype), rows)
    back = sorted(range(weight.rank), key=front.__getitem__)
    return transpose(reshape(made, len(matrix), *moved.shape[1:]), *back)


MOST_TRIED = 3
"""Other schedules of a kernel that are worth compiling and measuring."""


class Contraction:
    """The template of both packed operators."""

    has_epilogue = True
    has_strided_output = False

    def __init__(self, threads: int = 2) -> None:
        self.threads = threads

    def takes(self, op: Op, position: int, view: View) -> bool:
        """x may be strided, its channels only where there are few."""
        if position != 0 or not isinstance(op, PackedConvolution | PackedProduct):
            return False
        if not all(is_less(-1, step) for step in (*view.strides, view.offset)):
            return False
        seen = op.specification(view.strides, view.shape)
        if not is_steady(op, view) or not are_numbers(seen.flattened().x_strides[-2:]):
            return False
        # The weight was packed before it was known how x lies: it must suit both.
        plain = op.specification(contiguous(view.shape), view.shape)
        return seen.x_strides[-1] == plain.x_strides[-1] and taps_innermost(seen) == taps_innermost(
            plain
        )

    def legalize(self, value: Value, architecture: Architecture) -> Value | None:
        """A convolution or product with a constant weight, packed."""
        op = value.op
        if not isinstance(op, Convolution | MatMul) or op.accumulate is not None:
            return None
        x, w = value.inputs
        assert x is not None and w is not None
        if value.dtype not in FLOATS or not is_packable(value):
            return None
        if value.dtype != "float32":
            return _in_float32(value)
        if isinstance(op, Convolution):
            return self._convolution(op, x, w, architecture)
        return self._product(x, w, architecture)

    def _convolution(
        self, op: Convolution, x: Value, w: Value, architecture: Architecture
    ) -> Value | None:
        if not 1 <= len(op.strides) <= 3:
            return None
        shape = numbers(w.shape)
        order = tuple(range(x.rank))
        if isinstance(x.op, Transpose) and op.groups == 1 and shape[-1] <= MOST_STRIDED_CHANNELS:
            (inner,) = x.inputs
            assert inner is not None
            if isinstance(contiguous(inner.shape)[x.op.order[-1]], int):
                order, x = x.op.order, inner
        gate = None
        if op.groups == 1 and order == tuple(range(x.rank)):
            x, gate = without_gate(x, known(product(shape)))
        if not are_numbers((*op.before, *op.after)):
            return None
        before, after = numbers(op.before), numbers(op.after)
        plain = PackedConvolution(
            shape[1:-1], shape[0], op.strides, op.dilations, before, after, op.groups, order, ()
        )
        if not is_steady(plain, contiguous_view(x)):
            return None
        spec = plain.likely(x.shape)
        is_known = are_numbers(plain.images(x.shape))
        schedule = kernels.candidates(spec, architecture, self.threads, transforms=is_known)[0]
        packing = kernels.packing(spec, schedule, architecture)
        packed = scaled(pack(w, packing), packing, gate)
        return replace(plain, schedule=as_numbers(schedule))(x, packed)

    def _product(self, x: Value, w: Value, architecture: Architecture) -> Value | None:
        columns: int
        depth, columns = w.shape[-2:]  # type: ignore[assignment]
        if any(size != 1 for size in w.shape[:-2]) or not 2 <= x.rank <= 5 or x.rank < w.rank:
            return None
        weight = transpose(reshape(w, depth, columns), 1, 0)
        if not isinstance(x.shape[-1], int):
            return None
        x, gate = without_gate(x, known(depth * columns))
        lead = tuple(map(likely_value, x.shape))
        spec = PackedProduct(columns, ()).specification(contiguous(lead), lead)
        flat = spec.flattened()
        schedule = kernels.candidates(flat, architecture, self.threads)[0]
        weight = reshape(weight, columns, *flat.kernel, depth)
        packing = kernels.packing(flat, schedule, architecture)
        packed = scaled(pack(weight, packing), packing, gate)
        return PackedProduct(columns, as_numbers(schedule))(x, packed)

    def has_borders(self, kernel: Template) -> bool:
        """Whether a run tells the sizes of an image, of which a sum takes several elements: where
        borders are known, it is cut into other blocks."""
        op, x = kernel.op, kernel.inputs[0]
        if not isinstance(op, PackedConvolution) or x is None or math.prod(op.kernel) == 1:
            return False
        return not are_numbers(op.images(x.shape))

    def specialised(self, kernel: Template, architecture: Architecture, ordered: bool) -> Template:
        """The kernel of known sizes with the best schedule for them that reads the same weights,
        and, with `ordered`, adds up in the same order."""
        op, x = kernel.op, kernel.inputs[0]
        assert isinstance(op, PackedConvolution | PackedProduct) and x is not None
        spec = op.specification(contiguous(x.shape), x.shape)
        spec = spec.flattened() if isinstance(op, PackedProduct) else spec
        before = as_schedule(op.schedule)
        if ordered:  # parts of other sizes cut sums elsewhere
            return kernel
        packing = kernels.packing(spec, before, architecture)
        found = kernels.candidates(spec, architecture, self.threads, before.winograd)
        same = (s for s in found if s.winograd == before.winograd)
        alike = (s for s in same if kernels.packing(spec, s, architecture) == packing)
        return replace(kernel, op=replace(op, schedule=as_numbers(next(alike, before))))

    def alike(self, kernel: Template, architecture: Architecture) -> list[Template]:
        """The kernel with other schedules that may be faster and give the same bits."""
        op, x = kernel.op, kernel.inputs[0]
        assert isinstance(op, PackedConvolution | PackedProduct) and x is not None
        if not are_numbers((*x.shape, *x.strides)):
            return []
        spec = op.specification(x.strides, x.shape)
        spec = spec.flattened() if isinstance(op, PackedProduct) else spec
        given = spec, as_schedule(op.schedule), architecture, self.threads
        return [
            replace(kernel, op=replace(op, schedule=as_numbers(other)))
            for other in kernels.alike(*given, MOST_TRIED)
        ]

    def slots(self, kernel: Template) -> list[tuple[int, Size] | None]:
        """What the argument block holds: (buffer, offset in bytes), or None for a null pointer."""
        x, packed = kernel.inputs
        assert x is not None and packed is not None
        extra: list[tuple[int, Size]] = [(b, 0) for b in _epilogue_buffers(kernel)]
        return [
            (x.buffer, x.offset * element_bytes(arithmetic.STORAGE[x.dtype])),
            (packed.buffer, 0),
            None,
            *extra,
            (kernel.output.buffer, 0),
        ]

    def generate(self, kernel: Template, architecture: Architecture, name: str) -> str:
        """The kernel's LLVM text."""
        op, x = kernel.op, kernel.inputs[0]
        assert isinstance(op, PackedConvolution | PackedProduct) and x is not None
        spec = op.specification(x.strides, x.shape)
        nest, axes = _nest(kernel), _spatial_axes(op, kernel.axes)
        flat = spec.flattened()
        if flat is not spec and (merged := _merged_like(flat, nest)) is not None:
            spec, (nest, axes) = flat, merged
        hole = _Hole(kernel, nest, axes, architecture).epilogue()
        return self.code(op, spec, as_schedule(op.schedule), architecture, hole, name)

    def code(
        self,
        op: Packed,
        spec: Specification,
        schedule: Schedule,
        architecture: Architecture,
        epilogue: Epilogue,
        name: str,
    ) -> str:
        """The LLVM text of a specification."""
        return kernels.generate(spec, schedule, architecture, epilogue, name)


def is_packable(value: Value) -> bool:
    """Whether a convolution or product has a constant weight, and something to do."""
    x, w = value.inputs
    assert x is not None and w is not None
    if not w.is_static or x.is_static or not w.tensor.is_static:
        return False
    return 0 not in (*value.shape, *x.shape)


def is_steady(op: Packed, view: View) -> bool:
    """Whether a run tells only sizes that the kernel can be told: not how many channels there are,
    nor how far they and neighbouring columns are from each other."""
    last = op.order[-2:] if isinstance(op, PackedConvolution) else (-2, -1)
    return are_numbers((view.shape[last[-1]], *(view.strides[i] for i in last)))


def are_numbers(sizes: Iterable[Size]) -> bool:
    """Whether no run has to tell any of the sizes."""
    return all(isinstance(size, int) for size in sizes)


def _in_float32(value: Value) -> Value:
    """16-bit floats multiplied in float32, and rounded once behind the sum."""
    x, w = value.inputs
    assert x is not None and w is not None
    return cast(value.op(_widened(x), _widened(w)), value.dtype)


def _widened(x: Value) -> Value:
    """x in float32; a template may read the transpose of what is widened as it lies."""
    if isinstance(x.op, Transpose):
        (inner,) = x.inputs
        assert inner is not None
        return x.op(_widened(inner))
    return cast(x, "float32")


def _spatial_axes(op: Packed, axes: tuple[Axis, ...]) -> list[Axis | None]:
    """The epilogue's axes as the kernel counts its own: a product of a plain matrix has no
    batch."""
    missing = 3 - len(axes) if isinstance(op, PackedProduct) else 0
    return [*[None] * max(missing, 0), *axes]


def _merged_like(flat: Specification, nest: Nest) -> tuple[Nest, list[Axis | None]] | None:
    """The nest with axes merged as the kernel's are, and those axes; None where its maps keep them
    apart."""
    nest = merge(nest, kept=1)
    outer = [a for a in nest.axes[:-1] if a.size != 1]
    sizes = (flat.batch, *flat.size)
    if [a.size for a in outer] != [size for size in sizes if size != 1]:
        return None
    remaining = iter(outer)
    return nest, [*(None if size == 1 else next(remaining) for size in sizes), nest.axes[-1]]


def known(size: Size) -> int:
    """A size that no run tells."""
    assert isinstance(size, int)
    return size


def numbers(sizes: Sequence[Size]) -> tuple[int, ...]:
    """Sizes that are all known."""
    return tuple(int(s) for s in sizes)


def as_numbers(schedule: Schedule) -> tuple[int, ...]:
    """A schedule as an operator's attribute."""
    return tuple(int(x) for x in astuple(schedule))


def as_schedule(numbers: tuple[int, ...]) -> Schedule:
    """The schedule that `as_numbers` gave."""
    given = zip(fields(Schedule), numbers, strict=True)
    choices: dict[str, Any] = {f.name: bool(x) if f.type == "bool" else x for f, x in given}
    return Schedule(**choices)


def _nest(kernel: Template) -> Nest:
    index = tuple(loop_index(a.name, a.size) for a in kernel.axes)
    shape = tuple(a.size for a in kernel.axes)
    return Nest(kernel.axes, (Store(kernel.output.buffer, flatten(index, shape), kernel.epilogue),))


def _epilogue_buffers(kernel: Template) -> list[int]:
    """The buffers that the epilogue loads from, in order."""
    return sorted({n.buffer for n in walk(kernel.epilogue) if isinstance(n, Load)})


class _Hole:
    """The epilogue's expression as the kernel generator's hooks."""

    def __init__(
        self, kernel: Template, nest: Nest, axes: list[Axis | None], architecture: Architecture
    ) -> None:
        self.kernel, self.axes, self.architecture = kernel, axes, architecture
        (store,) = nest.stores
        self.expression = store.value
        self.buffers = _epilogue_buffers(kernel)
        self.sizes = frozenset(kernel.sizes)
        self.told: dict[str, Place] = {}

    def epilogue(self) -> Epilogue:
        element = arithmetic.STORAGE[self.expression.dtype]
        return Epilogue(self.apply, self.begin, len(self.buffers), element, self.kernel.sizes)

    def begin(self, f: Function, origin: Origin) -> Emitter:
        """Once per tile: the buffers' addresses, and where the tile begins."""
        pointers = [""] * len(self.kernel.buffers)
        for slot, buffer in enumerate(self.buffers):
            pointers[buffer] = f.load("ptr", origin.arguments, 8 * (FIRST_BUFFER + slot))
        emitter = Emitter(f, pointers, self.architecture.vector_bytes // 4)
        self.told = self.epilogue().named.places(f, sorted(self.expression.symbols & self.sizes))
        emitter.places = {**self.told, **self._places(origin, (0,) * len(self.axes))}
        return emitter

    def _places(self, origin: Origin, deltas: tuple[int, ...]) -> dict[str, Place]:
        return {
            axis.name: Place(base, delta)
            for axis, base, delta in zip(self.axes, origin.indices, deltas, strict=True)
            if axis is not None
        }

    def apply(self, f: Function, value: str, position: Position) -> str:
        e: Emitter = position.context
        channel = self.axes[-1]
        assert channel is not None
        changes = {
            "places": {**self.told, **self._places(position.origin, position.deltas)},
            "lanes": position.lanes,
            "vector": channel.name,
            "hole": (value, position.lanes),
        }
        with e.scope(**changes):
            result = e.widened(self.expression)
            return arithmetic.to_storage(f, result, self.expression.dtype, position.lanes)
