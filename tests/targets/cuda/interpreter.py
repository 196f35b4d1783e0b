"""Triton's interpreter as a device: generated text runs on NumPy arrays, no GPU needed.

Only in a process with TRITON_INTERPRET=1, which Triton reads when it is imported.
"""

from __future__ import annotations

import linecache
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from whet.errors import IndexOutOfRange
from whet.ir.evaluate import compute
from whet.ir.graph import Constant, Graph, Value
from whet.ir.sizes import Expr, Size, substitute
from whet.plan.legalize import legal
from whet.plan.plan import Plan, Step, make_plan
from whet.targets.bound import NO_SIZES
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.codegen import to_triton
from whet.targets.cuda.source import Launch, Source
from whet.targets.cuda.templates import depthwise
from whet.targets.cuda.templates.convolution import ImplicitConvolution
from whet.targets.cuda.templates.matmul import Product

TYPES = {
    "*i8": "int8",
    "*i16": "int16",
    "*i32": "int32",
    "*i64": "int64",
    "*u8": "uint8",
    "*u16": "uint16",
    "*u32": "uint32",
    "*u64": "uint64",
    "*fp16": "float16",
    "*bf16": "bfloat16",
    "*fp32": "float32",
    "*fp64": "float64",
}


class Libdevice:
    """NumPy in place of NVIDIA's library of functions."""

    def __getattr__(self, name: str) -> Any:
        import triton.language as tl
        from triton.runtime.interpreter import TensorHandle

        def function(*args: Any) -> Any:
            arrays = [a.handle.data for a in args]
            with np.errstate(all="ignore"):
                result = FUNCTIONS[name](*np.broadcast_arrays(*arrays))
            kind = args[0].dtype.scalar
            shape = list(result.shape)
            result = np.asarray(result, arrays[0].dtype)
            return tl.tensor(TensorHandle(result, kind), tl.block_type(kind, shape))

        return function


def _erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf, otypes=[x.dtype])(x)


FUNCTIONS: dict[str, Any] = {
    "exp": np.exp,
    "log": np.log,
    "tanh": np.tanh,
    "erf": _erf,
    "sin": np.sin,
    "cos": np.cos,
    "atan": np.arctan,
    "rint": np.rint,
    "fmod": np.fmod,
    "mul_rn": np.multiply,
    "pow": lambda a, b: np.power(a.astype(np.float64), b.astype(np.float64)),
}


def pointer(array: np.ndarray, kind: str) -> Any:
    """An array's address as a Triton tensor."""
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    type = tl.pointer_type(getattr(tl, TYPES[kind]))
    return tl.tensor(TensorHandle(np.array([array.ctypes.data], np.uint64), type), type)


class Watch:
    """The interpreter's way to memory, which refuses what lies outside of a launch's arrays, stores
    to those that it may only read, and loads that Triton compiles wrongly."""

    def __init__(self, way: Any, spans: Iterable[tuple[int, int, bool]]) -> None:
        self._way, self._lost = way, np.array([[0, 0, False]])
        found = sorted(span for span in spans if span[0] < span[1])
        self._spans = np.array(found).reshape(-1, 3)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._way, name)

    @classmethod
    @contextmanager
    def of(cls, arrays: Iterable[np.ndarray]) -> Iterator[None]:
        """Within it launches see these arrays and nothing else."""
        from triton.runtime import interpreter

        way = interpreter._interpreter
        spans = ((a.ctypes.data, a.ctypes.data + a.nbytes, a.flags.writeable) for a in arrays)
        interpreter._interpreter = cls(way, spans)
        try:
            yield
        finally:
            interpreter._interpreter = way

    def load(self, at: Any, mask: Any, other: Any, dtype: Any) -> Any:
        self._check(at, mask, np.dtype(dtype).itemsize, "load")
        # Up to 3.8 the bits of an integer that masked lanes get are put together with its sign
        # extended: of four bytes only the lowest is right.
        if np.dtype(dtype).kind in "iu" and np.dtype(dtype).itemsize < 4:
            signed = np.asarray(other).view(f"i{np.dtype(dtype).itemsize}")
            assert (signed >= 0).all(), "`other` of a load whose bits Triton gets wrong"
        return self._way.load(at, mask, other, dtype)

    def store(self, at: Any, value: Any, mask: Any) -> Any:
        self._check(at, mask, value.dtype.itemsize, "store")
        return self._way.store(at, value, mask)

    def atomic_rmw(self, kind: Any, at: Any, value: Any, mask: Any, order: Any) -> Any:
        self._check(at, mask, value.dtype.itemsize, "store")
        return self._way.atomic_rmw(kind, at, value, mask, order)

    def _check(self, at: np.ndarray, mask: np.ndarray, size: int, what: str) -> None:
        places = at[np.broadcast_to(mask, at.shape).astype(bool)].astype(np.int64)
        spans = self._spans if what == "load" else self._spans[self._spans[:, 2] == 1]
        # Before the first is nowhere.
        spans = np.concatenate((self._lost, spans))
        begin, end, _ = spans[np.searchsorted(spans[:, 0], places, "right") - 1].T
        wrong = (places + size > end) | (places % size != 0)
        if wrong.any():
            first = int(np.argmax(wrong))
            raise MemoryError(
                f"{wrong.sum()} of {wrong.size} {what}s lie outside, the first one "
                f"{places[first] - begin[first]} bytes into {end[first] - begin[first]}"
            )


def counted(*bounds: Any) -> Iterator[Any]:
    """A loop's numbers as Triton has them: of 32 bits, which products may leave."""
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    for number in range(*(int(bound) for bound in bounds)):
        yield tl.tensor(TensorHandle(np.array([number], np.int32), tl.int32), tl.int32)


_loaded: dict[str, dict[str, Any]] = {}


def functions(source: Source) -> dict[str, Any]:
    """The text's functions, interpreted."""
    if source.text not in _loaded:
        name = f"<interpreted {len(_loaded)}>"
        lines = source.text.splitlines(keepends=True)
        unknown = ("triton.language.extra", "inline_asm")  # imports, and asking for cache lines
        text = "".join(line for line in lines if not any(word in line for word in unknown))
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        namespace: dict[str, Any] = {
            "__name__": name,
            "libdevice": Libdevice(),
            "gdc_wait": lambda: None,
            "gdc_launch_dependents": lambda: None,
            "range": counted,
        }
        exec(compile(text, name, "exec"), namespace)
        _loaded[source.text] = namespace
    return _loaded[source.text]


Evaluate = Callable[[Size], int]


def launch(source: Source, call: Launch, arrays: dict[Any, np.ndarray], value: Evaluate) -> None:
    """Runs one launch, block after block."""
    arguments = [
        value(slot) if isinstance(slot, Expr) else pointer(arrays[slot], kind)
        for slot, kind in zip(call.slots, call.types)
    ]
    grid = tuple(map(value, call.grid))
    if 0 not in grid:
        with Watch.of(arrays.values()):
            functions(source)[call.function][grid](*arguments)


def run_kernel(
    source: Source, buffers: list[np.ndarray], sizes: Mapping[str, int] = NO_SIZES
) -> bool:
    """Runs a kernel on its buffers; whether it raised the error flag."""

    def value(size: Size) -> int:
        return int(substitute(size, sizes))

    error = np.zeros(1, np.int32)
    calls = list(source.launches)
    if any(call.until for call in calls):  # ways to do the same, of which the first is taken
        calls = [next(c for c in calls if not c.until or value(c.until[0]) <= c.until[1])]
    # Scratch holds anything at first; counters are found zero, and left so.
    scratch = np.full(max(4, *(value(call.scratch) for call in calls), 0), 0xA5, np.uint8)
    for call in calls:
        assert all(value(size) < 2**31 for size in call.reach)
        counters = np.zeros(max(value(call.counters), 1), np.int32)
        arrays: dict[Any, np.ndarray] = dict(enumerate(buffers))
        arrays |= {"error": error, "counters": counters, "scratch": scratch}
        launch(source, call, arrays, value)
        assert not counters.any()
    return bool(error[0])


class Interpreted:
    """What planning and running need of a device."""

    def __init__(self, architecture: str = "sm90", tile: Any = None) -> None:
        from whet.targets.cuda.device import capabilities

        self.tile = tile
        """Of products and convolutions, or of depthwise ones, instead of the one that is chosen."""
        by_span = isinstance(tile, depthwise.Tile)
        self.cut = depthwise.Depthwise if by_span else Product | ImplicitConvolution
        self.architecture = Architecture.parse(architecture)
        self.capabilities = capabilities(self.architecture)
        self.legalize = self.capabilities.legalize
        self.sizes: Mapping[str, int] = NO_SIZES
        """What kernels are told."""

    def run(
        self, graph: Graph, arrays: list[np.ndarray], sizes: Mapping[str, int] = NO_SIZES
    ) -> list[np.ndarray]:
        """The graph's outputs, every kernel interpreted, and told open sizes."""
        self.sizes = sizes
        return self._run(legal(graph, self), arrays, {})  # type: ignore[arg-type]

    def _run(
        self, graph: Graph, arrays: list[np.ndarray], known: dict[Value, Any]
    ) -> list[np.ndarray]:
        plan = make_plan(graph, self.capabilities)
        self.plan = plan
        values: dict[Value, Any] = {**known, **dict(zip(graph.inputs, arrays))}
        for value in graph.values:
            if isinstance(value.op, Constant):
                values[value] = value.op.data
        if plan.prepared:
            rest = legal(Graph((), tuple(plan.prepared)), self)  # type: ignore[arg-type]
            before = make_plan(rest, self.capabilities, prepare=True)
            self._steps(before, values)
            values |= dict(zip(plan.prepared, (values[v] for v in rest.outputs)))
        self._steps(plan, values)
        self.plan = plan
        return [values[o] for o in graph.outputs]

    def _steps(self, plan: Plan, values: dict[Value, Any]) -> None:
        for value in plan.graph.values:
            if isinstance(value.op, Constant):
                values[value] = value.op.data
        for step in plan.steps:
            if step.kernel is None:
                self._host(step, values)
                continue
            for value in step.writes:
                if value not in values:
                    poison = np.full(self._shape(value), 0, value.tensor.numpy)
                    poison.reshape(-1).view(np.uint8)[:] = 0xA5 if value.dtype != "bool" else 1
                    values[value] = poison
            buffers = [_whole(values[v]) for v in (*step.reads, *step.writes)]
            for number, value in enumerate(step.reads):
                if value not in step.writes:
                    buffers[number] = _read_only(buffers[number])
            tile = self.tile if isinstance(getattr(step.kernel, "op", None), self.cut) else None
            source = to_triton(step.kernel, self.architecture, tile)
            if run_kernel(source, buffers, self.sizes):
                raise IndexOutOfRange(str(step.nodes))
            for value, buffer in zip(step.writes, buffers[len(step.reads) :]):
                values[value] = buffer.reshape(self._shape(value))

    def _shape(self, value: Value) -> tuple[int, ...]:
        return tuple(int(substitute(n, self.sizes)) for n in value.shape)

    def _host(self, step: Step, values: dict[Value, Any]) -> None:
        arrays = [None if i is None else values[i] for i in step.value.inputs]
        values.update(zip(step.writes, compute(step.value, arrays, self.sizes)))


def _whole(x: Any) -> np.ndarray:
    return np.ascontiguousarray(x)


def _read_only(x: np.ndarray) -> np.ndarray:
    view = x.view()
    view.flags.writeable = False
    return view
