"""Convolutions and products of 8-bit integers with a constant weight, as the planner sees them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from whet.ir.graph import Op, Value, operator
from whet.ir.types import TensorType
from whet.ops.contract import Convolution, MatMul
from whet.ops.elementwise import Cast, Sub
from whet.ops.movement import reshape, transpose
from whet.ops.quantize import EIGHT_BITS, sums, with_padding
from whet.plan.group import contiguous as contiguous_view
from whet.plan.kernel import Template, View
from whet.plan.likely import likely_value
from whet.targets.cpu.architecture import Architecture
from whet.targets.cpu.templates import convolution as kernels
from whet.targets.cpu.templates import integer
from whet.targets.cpu.templates.contraction import (
    MOST_TRIED,
    Contraction,
    Packed,
    PackedConvolution,
    PackedProduct,
    as_numbers,
    as_schedule,
    is_packable,
    is_steady,
    numbers,
    pack,
)
from whet.targets.cpu.templates.epilogue import Epilogue
from whet.targets.cpu.templates.matmul import cast
from whet.targets.cpu.templates.schedule import Schedule
from whet.targets.cpu.templates.specification import Convolution as Specification
from whet.targets.cpu.templates.specification import contiguous
from whet.targets.cpu.unsigned import unsigned

WEIGHTS = (*EIGHT_BITS, "int16")


@operator
class IntegerConvolution(PackedConvolution):
    """Convolution of bytes x[N, *S, C] into int32; outside the image lies `fill`."""

    weight: str
    fill: int

    def infer(self, x: TensorType, packed: TensorType) -> TensorType:
        return super().infer(x, packed).with_dtype("int32")


@operator
class IntegerDepthwise(PackedConvolution):
    """The sum of (x - zero) * weight in int32, lanes being channels; 0 lies outside the image."""

    zero: int
    x: str

    def infer(self, x: TensorType, packed: TensorType) -> TensorType:
        return super().infer(x, packed).with_dtype("int32")


@operator
class IntegerProduct(PackedProduct):
    """Bytes x[..., K] times a weight [K, N], into int32."""

    weight: str

    def infer(self, x: TensorType, packed: TensorType) -> TensorType:
        return super().infer(x, packed).with_dtype("int32")


class IntegerContraction(Contraction):
    """The template of these operators."""

    def takes(self, op: Op, position: int, view: View) -> bool:
        """x may be strided, but for its channels."""
        if not super().takes(op, position, view):
            return False
        assert isinstance(op, PackedConvolution | PackedProduct)
        seen = op.specification(view.strides, view.shape)
        # The weight was packed before it was known how x lies: it must suit both.
        plain = op.specification(contiguous(view.shape), view.shape)
        return seen.x_strides[-1] == 1 and integer.quads_of(seen) == integer.quads_of(plain)

    def legalize(self, value: Value, architecture: Architecture) -> Value | None:
        """A convolution or product of 8-bit integers with a constant weight, packed."""
        op = value.op
        if not isinstance(op, Convolution | MatMul) or op.accumulate != "int32":
            return None
        x, w = value.inputs
        assert x is not None and w is not None
        if x.dtype not in EIGHT_BITS or w.dtype not in WEIGHTS or not is_packable(value):
            return None
        if isinstance(op, MatMul):
            return self._integer_product(op, x, w, architecture)
        if not 1 <= len(op.strides) <= 3:
            return None
        op, x, fill = with_padding(op, x)
        if not is_steady(_geometry(op, w), contiguous_view(x)):
            return None
        lanewise = self._depthwise(op, x, w, fill, architecture)
        return self._dense(op, x, w, fill, architecture) if lanewise is None else lanewise

    def _dense(
        self, op: Convolution, x: Value, w: Value, fill: int, architecture: Architecture
    ) -> Value:
        plain = _geometry(op, w)
        spec = plain.likely(x.shape)
        schedule = integer.candidates(spec, architecture, self.threads)[0]
        packed = _packed(w, spec, schedule, architecture)
        fill = fill & 255 if x.dtype == "uint8" else fill + 128
        run = IntegerConvolution(
            **attributes(plain, schedule=as_numbers(schedule)), weight=w.dtype, fill=fill
        )
        total: Value = run(unsigned(x), packed)
        return total if x.dtype == "uint8" else total - sums(op, w) * 128

    def _depthwise(
        self, op: Convolution, x: Value, w: Value, fill: int, architecture: Architecture
    ) -> Value | None:
        plain = _geometry(op, w)
        spec = plain.likely(x.shape)
        if not integer.fits_lanewise(spec, architecture, 255 * greatest(w)):
            return None
        schedule = kernels.candidates(spec, architecture, self.threads)[0]
        packed = pack(Cast("float32")(w), kernels.packing(spec, schedule, architecture))
        run = IntegerDepthwise(
            **attributes(plain, schedule=as_numbers(schedule)), zero=fill, x=x.dtype
        )
        total: Value = run(x, packed)
        return total + sums(op, w) * fill if fill else total

    def _integer_product(
        self, op: MatMul, x: Value, w: Value, architecture: Architecture
    ) -> Value | None:
        depth, columns = numbers(w.shape[-2:])
        if any(size != 1 for size in w.shape[:-2]) or not 2 <= x.rank <= 5 or x.rank < w.rank:
            return None
        weight = transpose(reshape(w, depth, columns), 1, 0)
        if not isinstance(x.shape[-1], int):
            return None
        lead = tuple(map(likely_value, x.shape))
        flat = PackedProduct(columns, ()).specification(contiguous(lead), lead).flattened()
        schedule = integer.candidates(flat, architecture, self.threads)[0]
        packed = _packed(
            reshape(weight, columns, *flat.kernel, depth), flat, schedule, architecture
        )
        total = IntegerProduct(columns, as_numbers(schedule), w.dtype)(unsigned(x), packed)
        if x.dtype == "uint8":
            return total
        return total - sums(op, reshape(w, depth, columns)) * 128

    def has_borders(self, kernel: Template) -> bool:
        """Sums of integers are the same in any order."""
        return False

    def specialised(self, kernel: Template, architecture: Architecture, ordered: bool) -> Template:
        """The kernel of known sizes with the best schedule for them that reads the same weights."""
        if isinstance(kernel.op, IntegerDepthwise):
            return super().specialised(kernel, architecture, ordered)
        return next(iter(self._alike(kernel, architecture)), kernel)

    def alike(self, kernel: Template, architecture: Architecture) -> list[Template]:
        """The kernel with other schedules that may be faster."""
        if isinstance(kernel.op, IntegerDepthwise):
            return super().alike(kernel, architecture)
        return [k for k in self._alike(kernel, architecture) if k != kernel][:MOST_TRIED]

    def _alike(self, kernel: Template, architecture: Architecture) -> list[Template]:
        """The kernel with every schedule that reads the same weights, the best guess first."""
        op, x = kernel.op, kernel.inputs[0]
        assert isinstance(op, IntegerConvolution | IntegerProduct) and x is not None
        if not all(isinstance(size, int) for size in x.shape):
            return []
        spec = op.specification(contiguous(x.shape), x.shape)
        spec = spec.flattened() if isinstance(op, IntegerProduct) else spec
        before = integer.packing(spec, as_schedule(op.schedule), architecture, op.weight)
        return [
            replace(kernel, op=replace(op, schedule=as_numbers(schedule)))
            for schedule in integer.candidates(spec, architecture, self.threads)
            if integer.packing(spec, schedule, architecture, op.weight) == before
        ]

    def code(
        self,
        op: Packed,
        spec: Specification,
        schedule: Schedule,
        architecture: Architecture,
        epilogue: Epilogue,
        name: str,
    ) -> str:
        given = spec, schedule, architecture, epilogue, name
        if isinstance(op, IntegerDepthwise):
            return integer.IntegerLanewise(*given, op.x, op.zero).generate()
        fill = op.fill if isinstance(op, IntegerConvolution) else 0
        assert isinstance(op, IntegerConvolution | IntegerProduct)
        return integer.IntegerDense(*given, op.weight, fill).generate()


def _geometry(op: Convolution, w: Value) -> PackedConvolution:
    """The convolution as templates name it, its schedule open."""
    shape = numbers(w.shape)
    return PackedConvolution(
        kernel=shape[1:-1],
        filters=shape[0],
        strides=op.strides,
        dilations=op.dilations,
        before=numbers(op.before),
        after=numbers(op.after),
        groups=op.groups,
        order=tuple(range(w.rank)),
        schedule=(),
    )


def attributes(op: Op, **changes: Any) -> dict[str, Any]:
    """An operator's attributes by name, some of them changed."""
    return op.attributes | changes


def _packed(w: Value, spec: Specification, schedule: Schedule, architecture: Architecture) -> Value:
    """A channels-last weight as the dense template reads it: in 8 bits, or 16."""
    packing = integer.packing(spec, schedule, architecture, w.dtype)
    quick = integer.is_quick(architecture, w.dtype)
    return pack(w if quick else cast(w, "int16"), packing)


def greatest(w: Value) -> int:
    """What no element of a weight exceeds in size."""
    if w.dtype == "int16":
        # Both sides of the difference that a weight less its zero point is have 8 bits.
        sides = (i.inputs[0] for i in w.inputs if i is not None and isinstance(i.op, Cast))
        is_shifted = isinstance(w.op, Sub) and all(
            i is not None and i.dtype in EIGHT_BITS for i in sides
        )
        return 255 if is_shifted else 1 << 15
    return 128 if w.dtype == "int8" else 255
