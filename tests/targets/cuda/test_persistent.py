"""Which products are tried with blocks that stay, and that these compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.targets.cuda.needs import needs_triton
from whet.ir.graph import Graph, Input, Value, make
from whet.ir.types import TensorType
from whet.ops.contract import MatMul
from whet.ops.elementwise import Max
from whet.ops.movement import Slice, transpose
from whet.plan.kernel import Template
from whet.plan.legalize import legal
from whet.plan.plan import make_plan
from whet.targets.cuda import codegen
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.autotune import MOST_OTHERS
from whet.targets.cuda.compile import to_object, unpack
from whet.targets.cuda.device import Device
from whet.targets.cuda.templates.persistent import DESCRIPTOR, Persistent
from whet.targets.cuda.text import LINE

LARGE = 4096, 2048
WIDE = 2048, 4096
HAVE, LACK = ("sm90", "sm100", "sm120"), ("sm80", "sm86", "sm89")


def kernel(build: Any, *shapes: tuple[int, ...], dtype: str = "float16") -> Template:
    """The product in a graph with inputs of these shapes."""
    values: list[Value] = [
        make(Input(f"x{n}", TensorType(dtype, shape)), ())[0] for n, shape in enumerate(shapes)
    ]
    device = Device(Architecture.parse("sm90"))
    graph = legal(Graph(tuple(values), (build(*values),)), device)
    steps = make_plan(graph, device.capabilities).steps
    (found,) = (s.kernel for s in steps if isinstance(s.kernel, Template))
    return found


def tiles(kernel: Template, architecture: str = "sm90") -> list[Any]:
    """The ways to run it."""
    return codegen.tiles(kernel, Architecture.parse(architecture))


def turned(*which: bool) -> Callable[..., Any]:
    """A product of sides that are transposed, with what is computed from it."""

    def build(a: Value, b: Value, bias: Value, residual: Value) -> Value:
        a, b = (transpose(x, 1, 0) if t else x for x, t in zip((a, b), which))
        return residual + Max()(MatMul()(a, b) + bias, 0.0)

    return build


TURNS = [(False, False), (False, True), (True, False), (True, True)]


def turned_kernel(turns: tuple[bool, bool], dtype: str = "float16") -> Template:
    """A large product of sides that lie so."""
    shapes = [shape[::-1] if t else shape for shape, t in zip((LARGE, WIDE), turns)]
    ends = (WIDE[1],), (LARGE[0], WIDE[1])
    return kernel(turned(*turns), *shapes, *ends, dtype=dtype)


@pytest.mark.parametrize("turns", TURNS, ids=str)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_large_ones_are_measured(turns: tuple[bool, bool], dtype: str) -> None:
    for name in HAVE:
        found = tiles(turned_kernel(turns, dtype), name)
        assert not isinstance(found[0], Persistent) and isinstance(found[1], Persistent)
        assert sum(isinstance(t, Persistent) for t in found) <= 2 < MOST_OTHERS
        assert not codegen.takes_sizes(found[1])
    for name in LACK:
        assert not any(isinstance(t, Persistent) for t in tiles(turned_kernel(turns, dtype), name))


def cut(start: int, width: int = 2048) -> Callable[..., Any]:
    """A product whose left side lies in a larger tensor."""
    part = Slice((0, start), (4096, width), (1, 1))
    return lambda a, b: MatMul()(part(a), b)


def test_sides_may_lie_in_larger_tensors() -> None:
    assert isinstance(tiles(kernel(cut(16), (4096, 2080), WIDE))[1], Persistent)


def test_rows_may_be_of_several_axes() -> None:
    def apart(a: Value, b: Value) -> Value:
        return transpose(MatMul()(a, b), 1, 0, 2) + 1.0

    assert isinstance(tiles(kernel(apart, (64, 64, 2048), WIDE))[1], Persistent)


@pytest.mark.parametrize(
    ("build", "shapes", "dtype"),
    [
        (MatMul(), ((2048, 768), (768, 768)), "float16"),
        (MatMul(), ((4096, 128), (128, 4096)), "float16"),
        (MatMul(), ((1024, 65536), (65536, 1024)), "float16"),
        (MatMul(), (LARGE, WIDE), "float32"),
        (MatMul(), ((4096, 2052), (2052, 4096)), "float16"),
        (MatMul(), (LARGE, (2048, 4100)), "float16"),
        (cut(4), ((4096, 2080), WIDE), "float16"),
        (cut(8), ((4096, 2084), WIDE), "float16"),
        (MatMul(), ((2, *LARGE), (2, *WIDE)), "float16"),
        (MatMul(), ((8192, 8192), (8192, 8192)), "float16"),
    ],
    ids=[
        "small",
        "short",
        "few tiles",
        "float32",
        "depth",
        "columns",
        "address",
        "stride",
        "batch",
        "many waves",
    ],
)
def test_others_are_not(
    build: Callable[..., Any], shapes: tuple[tuple[int, ...], ...], dtype: str
) -> None:
    found = tiles(kernel(build, *shapes, dtype=dtype))
    assert found and not any(isinstance(t, Persistent) for t in found)


@needs_triton
@pytest.mark.parametrize("name", HAVE)
@pytest.mark.parametrize("turns", [(False, False), (True, True)], ids=str)
def test_it_compiles(name: str, turns: tuple[bool, bool]) -> None:
    architecture, product = Architecture.parse(name), turned_kernel(turns)
    _, tile, *_ = codegen.tiles(product, architecture)
    source = codegen.to_triton(product, architecture, tile)
    (function,) = unpack(to_object(source, architecture))
    blocks, *_ = function.grid
    assert blocks == architecture.multiprocessors
    assert function.slots[-1] == "scratch" and function.scratch == 2 * DESCRIPTOR * blocks
    assert function.shared <= architecture.shared_bytes


@needs_triton
def test_few_blocks_prefetch_all_of_a_weight() -> None:
    sm90, depth, columns = Architecture.parse("sm90"), 1024, 4096
    product = kernel(MatMul(), (8192, depth), (depth, columns))
    source = codegen.to_triton(product, sm90, codegen.tiles(product, sm90)[1])
    lines = 2 * depth * columns // LINE
    each = -(-lines // sm90.multiprocessors)
    assert f"(tl.program_id(0)) * {each} +" in source.text
    assert len(unpack(to_object(source, sm90))) == 1


@needs_triton
def test_corners_have_32_bits_where_offsets_have_more() -> None:
    architecture = Architecture.parse("sm90")
    found = kernel(MatMul(), (1 << 20, 4096), (4096, 32))
    tile = Persistent(128, 32, 64, 1, 4, 3)
    source = codegen.to_triton(found, architecture, tile)
    assert "tl.int64" in source.text
    assert len(unpack(to_object(source, architecture))) == 1
