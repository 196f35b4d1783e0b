"""Convolutions by cuDNN: bias, residual and relu in the same kernel.

The numbers are those of cudnn_graph.h and cudnn_cnn.h, version 9. Only algorithms that give the
same bits each time are taken.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from whet.errors import DeviceError
from whet.plan.kernel import Template, View
from whet.plan.lower import loop_index
from whet.targets.cuda import library
from whet.targets.cuda.cublas import epilogue_of
from whet.targets.cuda.driver import Context
from whet.targets.cuda.library import WORKSPACE, expect
from whet.targets.cuda.source import Slot
from whet.targets.cuda.templates.convolution import ImplicitConvolution
from whet.targets.cuda.templates.matmul import offset_of

NAME = "cudnn"
TYPES = {"float32": 0, "float16": 2, "bfloat16": 9}
FLOAT, CHANNELS_LAST, CROSS_CORRELATION = 0, 1, 1
TENSOR_MATH, PLAIN_MATH = 1, 3
IDENTITY, RELU = 5, 1
PRECOMPUTED = 1  # the one algorithm that can do without relu
DETERMINISTIC = 1
PROPAGATES_NAN = 1
MOST_ASKED, MOST_WAYS = 8, 2


class _Found(ctypes.Structure):
    """cudnnConvolutionFwdAlgoPerf_t."""

    _fields_ = [
        ("algorithm", ctypes.c_int),
        ("status", ctypes.c_int),
        ("time", ctypes.c_float),
        ("memory", ctypes.c_size_t),
        ("determinism", ctypes.c_int),
        ("math", ctypes.c_int),
        ("reserved", ctypes.c_int * 3),
    ]


@dataclass(frozen=True)
class Filtering:
    """A convolution as the library is asked for it: sizes as (N, C, H, W), strides in elements."""

    dtype: str
    x: tuple[int, int, int, int]
    x_strides: tuple[int, int, int, int]
    w: tuple[int, int, int, int]
    y: tuple[int, int, int, int]
    y_strides: tuple[int, int, int, int]
    offsets: tuple[int, int, int]
    pad: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    groups: int
    has_residual: bool
    relu: bool


def matched(kernel: Template) -> tuple[Filtering, tuple[Slot, ...]] | None:
    """A kernel as a convolution of the library's, and its buffers: x, w, y, bias, residual. None
    where it is more than that."""
    op = kernel.op
    if type(op) is not ImplicitConvolution or op.channels_first or len(kernel.axes) != 4:
        return None
    x, w = kernel.inputs
    assert x is not None and w is not None
    index = tuple(loop_index(axis.name, axis.size) for axis in kernel.axes)
    output = offset_of(kernel.output, index)
    ends = epilogue_of(kernel.epilogue, output, kernel.axes[-1].name)
    if ends is None or ends[0] is None or op.before != op.after:
        return None
    bias, residual, relu = ends
    y = kernel.output
    if w.strides[-1] != 1 or x.strides[-1] != 1 or y.strides[-1] != 1 or not _is_dense(w):
        return None
    found = Filtering(
        x.dtype,
        _first(x.shape),
        _first(x.strides),
        _first(w.shape),
        _first(tuple(axis.size for axis in kernel.axes)),
        _first(y.strides),
        (int(x.offset), int(w.offset), int(y.offset)),
        _pair(op.before),
        _pair(op.strides),
        _pair(op.dilations),
        op.groups,
        residual is not None,
        relu,
    )
    buffers = (x.buffer, w.buffer, y.buffer, bias, residual)
    if any(kernel.buffers[n] != found.dtype for n in buffers if n is not None):
        return None
    if found.dtype not in TYPES:
        return None
    return found, tuple(n for n in buffers if n is not None)


def _first(sizes: tuple[Any, ...]) -> tuple[int, int, int, int]:
    """Channels after the batch, as the library counts them."""
    n, h, w, c = map(int, sizes)
    return n, c, h, w


def _pair(sizes: tuple[Any, ...]) -> tuple[int, int]:
    a, b = map(int, sizes)
    return a, b


def _is_dense(view: View) -> bool:
    step = 1
    for size, stride in zip(reversed(view.shape), reversed(view.strides)):
        if size != 1 and stride != step:
            return False
        step *= int(size)
    return True


@cache
def version() -> int:
    """The library's version; 0 where it is not there, or has not what is used here."""
    found = library.opened(NAME)
    if found is None or not hasattr(found, "cudnnConvolutionBiasActivationForward"):
        return 0
    found.cudnnGetVersion.restype = ctypes.c_size_t
    return int(found.cudnnGetVersion())


def ways(context: Context, kernel: Template) -> list[bytes]:
    """Objects for the ways that the library thinks best, the likely best first."""
    found = matched(kernel) if version() else None
    if found is None:
        return []
    filtering, slots = found
    with context:
        best = Asked(context, filtering).best()
    return [
        library.packed(
            NAME,
            version(),
            (*slots, "scratch"),
            {
                "filtering": asdict(filtering),
                "algorithm": way.algorithm,
                "math": way.math,
                "workspace": int(way.memory),
            },
        )
        for way in best
    ]


class Asked:
    """A convolution described to the library."""

    def __init__(self, context: Context, filtering: Filtering) -> None:
        found = library.opened(NAME)
        if found is None:
            raise DeviceError("cudnn is not there")
        self.library, self.filtering = found, filtering
        with context:
            self.handle, self.lock = _handle(context.found.number)
        f = filtering
        kind = TYPES[f.dtype]
        self.x = self._tensor(kind, f.x, f.x_strides)
        self.y = self._tensor(kind, f.y, f.y_strides)
        channels = (1, f.y[1], 1, 1)
        self.bias = self._tensor(kind, channels, (f.y[1], 1, 1, 1))
        self.w = self._made("Filter")
        self._set("SetFilter4dDescriptor", self.w, kind, CHANNELS_LAST, *f.w)
        self.how = self._made("Convolution")
        numbers = (*f.pad, *f.strides, *f.dilations, CROSS_CORRELATION, FLOAT)
        self._set("SetConvolution2dDescriptor", self.how, *numbers)
        self._set("SetConvolutionGroupCount", self.how, f.groups)
        self.use_math(PLAIN_MATH if f.dtype == "float32" else TENSOR_MATH)
        self.after = self._made("Activation")
        mode = RELU if f.relu else IDENTITY
        self._set("SetActivationDescriptor", self.after, mode, PROPAGATES_NAN, ctypes.c_double(0))

    def _made(self, kind: str) -> ctypes.c_void_p:
        made = ctypes.c_void_p()
        create = getattr(self.library, f"cudnnCreate{kind}Descriptor")
        expect(create(ctypes.byref(made)), f"describing a {kind} to cudnn")
        return made

    def _set(self, function: str, what: ctypes.c_void_p, *values: Any) -> None:
        expect(getattr(self.library, f"cudnn{function}")(what, *values), f"cudnn's {function}")

    def _tensor(
        self, kind: int, shape: tuple[int, ...], strides: tuple[int, ...]
    ) -> ctypes.c_void_p:
        made = self._made("Tensor")
        self._set("SetTensor4dDescriptorEx", made, kind, *shape, *strides)
        return made

    def use_math(self, math: int) -> None:
        """Lets it use matrix units, or not."""
        self._set("SetConvolutionMathType", self.how, math)

    def best(self) -> list[_Found]:
        """The ways that the library would take, of those that may be taken."""
        found, count = (_Found * MOST_ASKED)(), ctypes.c_int()
        with self.lock:
            status = self.library.cudnnGetConvolutionForwardAlgorithm_v7(
                self.handle,
                self.x,
                self.w,
                self.how,
                self.y,
                MOST_ASKED,
                ctypes.byref(count),
                found,
            )
        if status:
            return []
        good = [found[n] for n in range(count.value) if self._is_good(found[n])]
        return good[:MOST_WAYS]

    def _is_good(self, way: _Found) -> bool:
        known = self.filtering.relu or way.algorithm == PRECOMPUTED
        fits = way.memory <= WORKSPACE and way.determinism == DETERMINISTIC
        exact = self.filtering.dtype != "float32" or way.math == PLAIN_MATH
        return not way.status and known and fits and exact

    def __del__(self) -> None:
        for kind, names in _DESCRIBED.items():
            for name in names:
                if hasattr(self, name):
                    getattr(self.library, f"cudnnDestroy{kind}Descriptor")(getattr(self, name))


_DESCRIBED = {
    "Tensor": ("x", "y", "bias"),
    "Filter": ("w",),
    "Convolution": ("how",),
    "Activation": ("after",),
}


@cache
def _handle(number: int) -> tuple[ctypes.c_void_p, threading.Lock]:
    """The library's own state for a device, whose context is current; one thread at a time."""
    made = ctypes.c_void_p()
    found = library.opened(NAME)
    assert found is not None
    expect(found.cudnnCreate(ctypes.byref(made)), "opening cudnn")
    return made, threading.Lock()


class Way:
    """One algorithm of the library's, for one convolution."""

    name = NAME

    def __init__(self, context: Context, made_with: int, how: dict[str, Any]) -> None:
        if version() != made_with:
            raise DeviceError(f"this is made for version {made_with} of cudnn")
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in how["filtering"].items()
        }
        self.asked = Asked(context, Filtering(**plain))
        self.asked.use_math(how["math"])
        self.algorithm, self.workspace = int(how["algorithm"]), int(how["workspace"])

    def run(self, addresses: Iterable[int], stream: int) -> None:
        """Asks for the convolution on a stream."""
        asked, f = self.asked, self.asked.filtering
        width = 4 if f.dtype == "float32" else 2
        x, w, y, bias, *rest, scratch = addresses
        x, w, y = (a + width * o for a, o in zip((x, w, y), f.offsets))
        one, beta = ctypes.c_float(1), ctypes.c_float(f.has_residual)
        added = rest[0] if f.has_residual else y
        with asked.lock:
            status = asked.library.cudnnSetStream(asked.handle, ctypes.c_void_p(stream))
            expect(status, "choosing cudnn's stream")
            status = asked.library.cudnnConvolutionBiasActivationForward(
                asked.handle,
                ctypes.byref(one),
                asked.x,
                ctypes.c_void_p(x),
                asked.w,
                ctypes.c_void_p(w),
                asked.how,
                self.algorithm,
                ctypes.c_void_p(scratch),
                ctypes.c_size_t(self.workspace),
                ctypes.byref(beta),
                asked.y,
                ctypes.c_void_p(added),
                asked.bias,
                ctypes.c_void_p(bias),
                asked.after,
                asked.y,
                ctypes.c_void_p(y),
            )
        expect(status, "a convolution by cudnn")
