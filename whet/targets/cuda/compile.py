"""Triton text to machine code: no GPU, no PyTorch, nothing left on disk.

An object is a JSON head with what launching needs, then the cubins one after the other.
"""

from __future__ import annotations

import json
import linecache
import math
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from importlib.util import find_spec
from typing import Any

from whet.engine.size_table import SizeReader, SizeWriter
from whet.errors import CompileError, DeviceError, InvalidEngine
from whet.ir.sizes import Expr, Size, modulo
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.source import WAIT, Grid, Launch, Slot, Source

MAGIC = b"whet cubins 4\n"
OLDEST = 3, 6
"""The first Triton that makes descriptors in Gluon, which `templates/warp_groups.py` needs."""


@dataclass(frozen=True)
class Function:
    """One compiled function: machine code, and how it is launched."""

    name: str
    cubin: bytes
    grid: Grid
    slots: tuple[Slot, ...]
    threads: int
    shared: int
    nulls: int
    """Null pointers that the compiler appended to the arguments."""
    counters: Size
    scratch: Size
    checks: bool
    waits: bool
    """Whether it waits by itself for the kernel before it, and may start while that runs."""
    spread: bool
    reach: tuple[Size, ...] = ()
    until: tuple[Size, int] | None = None
    """As a Launch has them."""

    @property
    def is_open(self) -> bool:
        """Whether a run tells how many blocks there are."""
        return not all(isinstance(n, int) for n in self.grid)

    @property
    def sizes(self) -> list[Size]:
        """What a run has to evaluate for it."""
        until = () if self.until is None else self.until[:1]
        told = (slot for slot in self.slots if isinstance(slot, Expr))
        return [*self.grid, self.counters, self.scratch, *self.reach, *until, *told]

    def is_for(self, value: Callable[[Size], int]) -> bool:
        """Whether it is among the ways that may be taken at known sizes: the first of them is."""
        return self.until is None or value(self.until[0]) <= self.until[1]


def to_object(source: Source, architecture: Architecture) -> bytes:
    """All functions of the source compiled; raises CompileError with Triton's complaint, and
    DeviceError where there is no Triton."""
    triton = _triton()
    namespace = _executed(source.text)
    with _no_files(triton):
        return pack(
            [_compile(triton, namespace, f, architecture, source.text) for f in source.launches]
        )


def has_triton() -> bool:
    """Whether kernels can be compiled here."""
    try:
        return find_spec("triton") is not None
    except ValueError:  # what stands in its place has no origin
        return False


def _triton() -> Any:
    try:
        import triton

        found = str(triton.__version__)  # an empty folder of its name has none
    except Exception as error:
        raise DeviceError(
            f"a kernel has to be compiled, and Triton is not here ({error}): `pip install "
            "whet[cuda]`, or bring the kernels along in a cache (`whet cache export`) or an engine "
            "(`whet build --architectures`, used with `allow_code=True`), made by this very version"
        ) from None
    if tuple(map(int, re.findall(r"\d+", found)[:2])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise DeviceError(
            f"kernels for NVIDIA GPUs are compiled by Triton {oldest} or later, and {found} is "
            "there; pip install --upgrade whet[cuda]"
        )
    return triton


def _executed(text: str) -> dict[str, Any]:
    """The text's functions; Triton reads their source back, which `linecache` keeps for it."""
    name = f"<whet {blake2b(text.encode(), digest_size=8).hexdigest()}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    namespace: dict[str, Any] = {"__name__": name}
    exec(compile(text, name, "exec"), namespace)
    return namespace


@contextmanager
def _no_files(triton: Any) -> Iterator[None]:
    """Triton's own cache in a folder that goes away again: ours holds what comes out, without the
    numbers of the text's lines."""
    with (
        tempfile.TemporaryDirectory(prefix="whet-") as folder,
        triton.knobs.cache.scope(),
        triton.knobs.compilation.scope(),
    ):
        triton.knobs.cache.dir = folder
        triton.knobs.compilation.disable_line_info = True
        yield


def _compile(
    triton: Any,
    namespace: dict[str, Any],
    launch: Launch,
    architecture: Architecture,
    text: str,
) -> Function:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    function = namespace[launch.function]
    # Every buffer begins at a multiple of 16 bytes, and some sizes are multiples of 16 whatever a
    # run tells: wide accesses may rely on it.
    even = [not isinstance(slot, Expr) or modulo(slot, 16) == 0 for slot in launch.slots]
    attributes = {(i,): [["tt.divisibility", 16]] for i, known in enumerate(even) if known}
    language = GluonASTSource if function.is_gluon() else ASTSource
    source = language(
        fn=function,
        signature=dict(zip(function.arg_names, launch.types, strict=True)),
        constexprs={},
        attrs=attributes,
    )
    options = {
        "num_warps": launch.warps,
        "num_stages": launch.stages,
        "enable_fp_fusion": True,
        "sanitize_overflow": False,
    }
    target = GPUTarget("cuda", architecture.capability, 32)
    try:
        compiled = triton.compile(source, target=target, options=options)
    except Exception as error:
        said = "\n".join(dict.fromkeys(str(e) for e in _causes(error)))
        raise CompileError(f"Triton cannot compile {launch.function}: {said}") from error
    metadata = compiled.metadata
    slots, extra = launch.slots, _parameters(compiled.asm["ptx"]) - len(launch.types)
    if own := metadata.global_scratch_size:
        # The first of the parameters that Triton appends: memory that each block has for itself.
        if own * math.prod(launch.grid) > launch.scratch or "scratch" in slots:
            raise CompileError(f"{launch.function} needs {own} bytes of memory for each block")
        slots, extra = (*slots, "scratch"), extra - 1
    return Function(
        metadata.name,
        compiled.asm["cubin"],
        launch.grid,
        slots,
        metadata.num_warps * 32,
        metadata.shared,
        extra,
        launch.counters,
        launch.scratch,
        "tl.store(error" in text,
        WAIT in text,
        launch.spread,
        launch.reach,
        launch.until,
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__


def _parameters(ptx: str) -> int:
    """How many parameters the entry function has."""
    entry = re.search(r"\.visible\s+\.entry\s+\w+\s*\(([^)]*)\)", ptx)
    if entry is None:
        raise CompileError("Triton's PTX has no entry function: this version is not known to whet")
    return entry[1].count(".param")


def pack(functions: list[Function]) -> bytes:
    """Compiled functions as one object."""
    sizes = SizeWriter()
    plain = [
        {k: _plain(v, sizes) for k, v in vars(f).items() if k != "cubin"} | {"bytes": len(f.cubin)}
        for f in functions
    ]
    head = {"sizes": sizes.table, "functions": plain}
    text = json.dumps(head, separators=(",", ":")).encode() + b"\n"
    return b"".join([MAGIC, text, *(f.cubin for f in functions)])


def unpack(data: bytes) -> list[Function]:
    """The functions of an object; raises CompileError for what is none."""
    if not data.startswith(MAGIC):
        raise CompileError("a compiled kernel is damaged: it does not begin as one")
    try:
        return list(_unpacked(data))
    except (ValueError, KeyError, TypeError, InvalidEngine) as error:
        raise CompileError(f"a compiled kernel is damaged: {error}") from None


def _unpacked(data: bytes) -> Iterator[Function]:
    end = data.index(b"\n", len(MAGIC)) + 1
    head, sizes = json.loads(data[len(MAGIC) : end]), SizeReader()
    for size in head["sizes"]:
        sizes.add(size)
    for entry in head["functions"]:
        length = entry.pop("bytes")
        fields = {name: _read(value, sizes) for name, value in entry.items()}
        yield Function(cubin=data[end : end + length], **fields)
        end += length
    if end != len(data):
        raise ValueError(f"{end:,} bytes are needed, and {len(data):,} there")


def _plain(x: Any, sizes: SizeWriter) -> Any:
    """A field of a function as JSON holds it."""
    if isinstance(x, tuple):
        return [_plain(i, sizes) for i in x]
    return sizes.plain(x) if isinstance(x, Expr) else x


def _read(x: Any, sizes: SizeReader) -> Any:
    if isinstance(x, list):
        return tuple(_read(i, sizes) for i in x)
    return sizes.size(x) if isinstance(x, dict) else x
