"""Matrix products by cuBLASLt: bias and residual in the same kernel.

The numbers are those of cublasLt.h, which has them since version 11. It counts columns first: a
product of ours is the transposed one to it, with the sides exchanged. Its relu makes 0 of NaN, so
that it is asked for none.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from math import gcd
from typing import Any

from whet.errors import DeviceError
from whet.ir.sizes import Size, coefficient, substitute
from whet.ops.elementwise import Add, Max
from whet.plan.kernel import Apply, Expression, Hole, Literal, Load, Template
from whet.targets.cuda import library
from whet.targets.cuda.driver import Context
from whet.targets.cuda.library import WORKSPACE, expect
from whet.targets.cuda.source import Slot
from whet.targets.cuda.templates.matmul import Product, dtype_of, problem_of

NAME = "cublasLt"
TYPES = {"float32": 0, "float16": 2, "bfloat16": 14}
COMPUTE_32F = 68
TRANSPOSED_A, TRANSPOSED_B, EPILOGUE, BIAS_POINTER = 3, 4, 7, 8  # of a product
BATCH_COUNT, BATCH_STRIDE = 5, 6  # of a matrix
MOST_WORKSPACE, LEAST_ALIGNMENTS = 1, (5, 6, 7, 8)  # of what is asked for
PLAIN, BIAS = 1, 4
ALIGNMENT = 16  # bytes, of every buffer
MOST_WAYS = 3

_Algorithm = ctypes.c_uint64 * 8


class _Found(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = [
        ("algorithm", _Algorithm),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    ]


@dataclass(frozen=True)
class Matmul:
    """A product as the library is asked for it: strides and offsets count elements."""

    dtype: str
    rows: int
    columns: int
    depth: int
    left: tuple[int, bool]
    """The stride, and whether it is the depth's and not the rows'."""
    right: tuple[int, bool]
    """The stride, and whether it is the columns' and not the depth's."""
    out: int
    batch: tuple[int, int, int, int]
    """How many there are, and the strides between them on the left, the right, and outside."""
    offsets: tuple[int, int, int]
    bias: bool = False
    residual: int = 0
    """The stride of what is added, 0 where nothing is."""

    @property
    def width(self) -> int:
        """The bytes of an element."""
        return 4 if self.dtype == "float32" else 2

    @property
    def alignments(self) -> tuple[int, int, int]:
        """The bytes that the addresses on the left, the right and outside are multiples of."""
        apart = self.batch[1:]
        left, right, out = (
            gcd(ALIGNMENT, self.width * offset, self.width * stride)
            for offset, stride in zip(self.offsets, apart)
        )
        return left, right, out


def matched(kernel: Template) -> tuple[Matmul, tuple[Slot, ...]] | None:
    """A kernel as a product of the library's, and its buffers: left, right, result, bias,
    residual. None where it is more than that."""
    if type(kernel.op) is not Product:
        return None
    problem = problem_of(kernel)
    if len(problem.rows) != 1 or len(problem.batch) > 1:
        return None
    names = (problem.rows[0].name, "depth", problem.column.name, *(a.name for a in problem.batch))
    sides = [_strides(o, names) for o in (*problem.offsets, problem.output)]
    if any(side is None for side in sides):
        return None
    (l_row, l_depth, _, *l_batch), (_, r_depth, r_column, *r_batch), out = sides  # type: ignore[misc]
    o_row, _, o_column, *o_batch = out  # type: ignore[misc]
    rows, columns, depth = map(int, (problem.rows[0].size, problem.column.size, problem.depth))
    left = _side(l_row, l_depth, depth, rows)
    right = _side(r_depth, r_column, columns, depth)
    ends = epilogue_of(problem.epilogue, problem.output, problem.column.name)
    if left is None or right is None or o_column != 1 or o_row < columns or ends is None:
        return None
    bias, residual, relu = ends
    if relu or (problem.batch and (bias, residual) != (None, None)):
        return None
    count = int(problem.batch[0].size) if problem.batch else 1
    batch = count, *(int(s[0]) if s else 0 for s in (l_batch, r_batch, o_batch))
    offsets = tuple(int(_at_zero(o, names)) for o in (*problem.offsets, problem.output))
    found = Matmul(
        dtype_of(kernel),
        rows,
        columns,
        depth,
        left,
        right,
        o_row,
        batch,  # type: ignore[arg-type]
        offsets,  # type: ignore[arg-type]
        bias is not None,
        o_row if residual is not None else 0,
    )
    a, b = kernel.inputs
    assert a is not None and b is not None
    buffers = (a.buffer, b.buffer, kernel.output.buffer, bias, residual)
    if any(kernel.buffers[n] != found.dtype for n in buffers if n is not None):
        return None
    if found.dtype not in TYPES:
        return None
    return found, tuple(n for n in buffers if n is not None)


def _strides(offset: Size, names: tuple[str, ...]) -> list[int] | None:
    found = [coefficient(offset, name) for name in names]
    return [int(c) for c in found] if all(isinstance(c, int) for c in found) else None  # type: ignore[arg-type]


def _at_zero(offset: Size, names: tuple[str, ...]) -> Size:
    return substitute(offset, dict.fromkeys(names, 0))


def _side(outer: int, inner: int, width: int, height: int) -> tuple[int, bool] | None:
    """A matrix of so many elements along `inner` and `outer`: its stride, and whether that is the
    inner one's; None where neither lies side by side."""
    if inner == 1 and outer >= width:
        return outer, False
    if outer == 1 and inner >= height:
        return inner, True
    return None


def epilogue_of(
    value: Expression, output: Size, column: str
) -> tuple[int | None, int | None, bool] | None:
    """The buffers of the bias and of the residual, and whether relu follows."""
    relu = isinstance(value, Apply) and type(value.op) is Max and _is_zero(value.args[1])
    if relu:
        value = value.args[0]  # type: ignore[attr-defined]
    terms = list(_terms(value))
    if sum(isinstance(term, Hole) for term in terms) != 1:
        return None
    bias = residual = None
    for term in terms:
        if isinstance(term, Hole):
            continue
        if not isinstance(term, Load):
            return None
        if _is_along(term.offset, column) and bias is None:
            bias = term.buffer
        elif term.offset == output and residual is None:
            residual = term.buffer
        else:
            return None
    return bias, residual, relu


def _terms(value: Expression) -> Iterable[Expression]:
    if isinstance(value, Apply) and type(value.op) is Add:
        for arg in value.args:
            yield from _terms(arg)
    else:
        yield value


def _is_zero(value: Expression) -> bool:
    return isinstance(value, Literal) and value.value == 0


def _is_along(offset: Size, column: str) -> bool:
    """Whether an offset is the column's number."""
    return coefficient(offset, column) == 1 and substitute(offset, {column: 0}) == 0


@cache
def version() -> int:
    """The library's version; 0 where it is not there."""
    found = library.opened(NAME)
    if found is None:
        return 0
    found.cublasLtGetVersion.restype = ctypes.c_size_t
    return int(found.cublasLtGetVersion())


def ways(context: Context, kernel: Template) -> list[bytes]:
    """Objects for the ways that the library thinks best, the likely best first."""
    found = matched(kernel) if version() else None
    if found is None:
        return []
    matmul, slots = found
    with context:
        best = Asked(context, matmul).best()
    return [
        library.packed(
            NAME,
            version(),
            (*slots, "scratch"),
            {
                "matmul": asdict(matmul),
                "algorithm": list(way.algorithm),
                "workspace": int(way.workspace),
            },
        )
        for way in best
    ]


class Asked:
    """A product described to the library."""

    def __init__(self, context: Context, matmul: Matmul) -> None:
        found = library.opened(NAME)
        if found is None:
            raise DeviceError("cublasLt is not there")
        self.library, self.matmul = found, matmul
        with context:
            self.handle = _handle(context.found.number)
        m = matmul
        self.operation = self._made("MatmulDesc", COMPUTE_32F, TYPES["float32"])
        count, left, right, out = m.batch
        # Its first side is our right one: columns by depth, without or with a turn.
        shapes = [(m.depth, m.columns), (m.columns, m.depth)]
        self.first = self._matrix(shapes[not m.right[1]], m.right[0], count, right)
        shapes = [(m.rows, m.depth), (m.depth, m.rows)]
        self.second = self._matrix(shapes[not m.left[1]], m.left[0], count, left)
        self.result = self._matrix((m.columns, m.rows), m.out, count, out)
        self._set("MatmulDesc", self.operation, TRANSPOSED_A, ctypes.c_int32(m.right[1]))
        self._set("MatmulDesc", self.operation, TRANSPOSED_B, ctypes.c_int32(m.left[1]))
        kind = BIAS if m.bias else PLAIN
        self._set("MatmulDesc", self.operation, EPILOGUE, ctypes.c_int32(kind))
        self.parts = (self.operation, self.first, self.second, self.result, self.result)

    def _made(self, kind: str, *numbers: int) -> ctypes.c_void_p:
        made = ctypes.c_void_p()
        create = getattr(self.library, f"cublasLt{kind}Create")
        expect(create(ctypes.byref(made), *numbers), f"describing a {kind} to cublasLt")
        return made

    def _set(self, kind: str, what: ctypes.c_void_p, number: int, value: Any) -> None:
        change = getattr(self.library, f"cublasLt{kind}SetAttribute")
        size = ctypes.c_size_t(ctypes.sizeof(value))
        status = change(what, number, ctypes.byref(value), size)
        expect(status, f"describing a {kind} to cublasLt")

    def _matrix(
        self, shape: tuple[int, int], stride: int, count: int, apart: int
    ) -> ctypes.c_void_p:
        made = ctypes.c_void_p()
        status = self.library.cublasLtMatrixLayoutCreate(
            ctypes.byref(made),
            TYPES[self.matmul.dtype],
            ctypes.c_uint64(shape[0]),
            ctypes.c_uint64(shape[1]),
            ctypes.c_int64(stride),
        )
        expect(status, "describing a matrix to cublasLt")
        if count > 1:
            self._set("MatrixLayout", made, BATCH_COUNT, ctypes.c_int32(count))
            self._set("MatrixLayout", made, BATCH_STRIDE, ctypes.c_int64(apart))
        return made

    def best(self) -> list[_Found]:
        """The ways that the library would take."""
        wanted = self._made("MatmulPreference")
        self._set("MatmulPreference", wanted, MOST_WORKSPACE, ctypes.c_uint64(WORKSPACE))
        left, right, out = self.matmul.alignments
        for number, least in zip(LEAST_ALIGNMENTS, (right, left, out, out)):
            self._set("MatmulPreference", wanted, number, ctypes.c_uint32(least))
        found, count = (_Found * MOST_WAYS)(), ctypes.c_int()
        status = self.library.cublasLtMatmulAlgoGetHeuristic(
            self.handle, *self.parts, wanted, MOST_WAYS, found, ctypes.byref(count)
        )
        self.library.cublasLtMatmulPreferenceDestroy(wanted)
        if status:  # there is none
            return []
        return [found[n] for n in range(count.value) if not found[n].state]

    def verify(self, algorithm: ctypes.Array[Any], workspace: int) -> None:
        """Raises DeviceError for an algorithm that cannot run here, with so many bytes."""
        found = _Found()
        status = self.library.cublasLtMatmulAlgoCheck(
            self.handle, *self.parts, algorithm, ctypes.byref(found)
        )
        expect(status or found.state, "preparing a product by cublasLt")
        if found.workspace > workspace:
            raise DeviceError(f"a product by cublasLt needs {found.workspace:,} bytes to work in")

    def __del__(self) -> None:
        for kind, names in (("MatmulDesc", ("operation",)), ("MatrixLayout", _MATRICES)):
            for name in names:
                if hasattr(self, name):
                    getattr(self.library, f"cublasLt{kind}Destroy")(getattr(self, name))


_MATRICES = ("first", "second", "result")


@cache
def _handle(number: int) -> ctypes.c_void_p:
    """The library's own state for a device, whose context is current."""
    made = ctypes.c_void_p()
    found = library.opened(NAME)
    assert found is not None
    expect(found.cublasLtCreate(ctypes.byref(made)), "opening cublasLt")
    return made


class Way:
    """One algorithm of the library's, for one product."""

    name = NAME

    def __init__(self, context: Context, made_with: int, how: dict[str, Any]) -> None:
        if version() != made_with:
            raise DeviceError(f"this is made for version {made_with} of cublasLt")
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in how["matmul"].items()
        }
        self.asked = Asked(context, Matmul(**plain))
        self.algorithm = _Algorithm(*how["algorithm"])
        self.workspace = int(how["workspace"])
        self.asked.verify(self.algorithm, self.workspace)

    def run(self, addresses: Iterable[int], stream: int) -> None:
        """Asks for the product on a stream."""
        asked, m = self.asked, self.asked.matmul
        left, right, out, *rest, scratch = addresses
        left, right, out = (a + m.width * o for a, o in zip((left, right, out), m.offsets))
        if m.bias:
            asked._set("MatmulDesc", asked.operation, BIAS_POINTER, ctypes.c_void_p(rest[0]))
        added = rest[-1] if m.residual else out
        one, beta = ctypes.c_float(1), ctypes.c_float(bool(m.residual))
        status = asked.library.cublasLtMatmul(
            asked.handle,
            asked.operation,
            ctypes.byref(one),
            ctypes.c_void_p(right),
            asked.first,
            ctypes.c_void_p(left),
            asked.second,
            ctypes.byref(beta),
            ctypes.c_void_p(added),
            asked.result,
            ctypes.c_void_p(out),
            asked.result,
            ctypes.byref(self.algorithm),
            ctypes.c_void_p(scratch),
            ctypes.c_size_t(self.workspace),
            ctypes.c_void_p(stream),
        )
        expect(status, "a product by cublasLt")
