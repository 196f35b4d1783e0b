"""Convolution kernels against a float64 reference: random shapes, schedules, architectures."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.fences import fenced
from tests.levels import LEVELS, architecture
from whet.targets.cpu import host, jit
from whet.targets.cpu.architecture import Architecture
from whet.targets.cpu.llvm import Function, vector
from whet.targets.cpu.templates.convolution import alike, candidates, generate, packing
from whet.targets.cpu.templates.epilogue import FIRST_BUFFER, Epilogue, Origin, Position
from whet.targets.cpu.templates.schedule import Schedule
from whet.targets.cpu.templates.specification import Convolution, product

GUARD = 64  # elements before and after y that must stay as they are
POISON = np.float32(np.nan)


def reference(c: Convolution, x: NDArray[Any], weight: NDArray[Any]) -> NDArray[np.float64]:
    """The convolution of a dense x[batch, *size, channels] in float64."""
    pads = [(0, 0), *zip(c.before, c.after), (0, 0)]
    x = np.pad(x.astype(np.float64), pads)
    x = x.reshape(*x.shape[:-1], c.groups, c.group_channels)
    w = weight.astype(np.float64).reshape(c.groups, c.group_filters, *c.kernel, c.group_channels)
    y = np.zeros((c.batch, *c.outputs, c.groups, c.group_filters))
    for tap in itertools.product(*map(range, c.kernel)):
        cut = [
            slice(t * d, t * d + (o - 1) * s + 1, s)
            for t, d, o, s in zip(tap, c.dilations, c.outputs, c.steps)
        ]
        y += np.einsum("...gc,gfc->...gf", x[:, *cut], w[:, :, *tap])
    return y.reshape(c.batch, *c.outputs, c.filters)


def aligned(array: NDArray[Any]) -> NDArray[Any]:
    memory = host.aligned_memory(max(array.nbytes, 1))[: array.nbytes]
    memory[...] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return memory.view(array.dtype).reshape(array.shape)


def span_of(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the first to the last of a strided array."""
    return 1 + sum((n - 1) * s for n, s in zip(shape, strides))


def strided(memory: NDArray[Any], shape: tuple[int, ...], strides: tuple[int, ...]) -> NDArray[Any]:
    return np.lib.stride_tricks.as_strided(memory, shape, [4 * s for s in strides])


def residual_and_relu(y_strides: tuple[int, ...]) -> Epilogue:
    """max(value + buffer 0 (laid out like y) * buffer 1 (one per channel), 0)"""

    def begin(f: Function, origin: Origin) -> tuple[str, str]:
        first, second = (f.load("ptr", origin.arguments, 8 * (FIRST_BUFFER + i)) for i in (0, 1))
        offset = f.mul(origin.offset(f, y_strides), 4)
        return f.address(first, offset), f.address(second, f.mul(origin.indices[-1], 4))

    def apply(f: Function, value: str, position: Position) -> str:
        type = vector("float", position.lanes)
        residual = f.load(type, position.context[0], 4 * position.offset(y_strides))
        scale = f.load(type, position.context[1], 4 * position.deltas[-1])
        value = f.fma(type, residual, scale, value)
        return f.intrinsic(
            "llvm.maxnum", type, value, "zeroinitializer" if position.lanes > 1 else "0.0"
        )

    return Epilogue(apply, begin, buffers=2)


def coordinates() -> Epilogue:
    """value + sum of index * 10^axis: shows that the epilogue is told the right indices."""

    def apply(f: Function, value: str, position: Position) -> str:
        type = vector("float", position.lanes)
        indices = zip(position.origin.indices[:-1], position.deltas)
        for index, delta in indices:
            number = f.op(f"sitofp i64 {f.add(index, delta)} to float")
            value = f.binary("fadd", type, value, f.splat(type, number))
        return value

    return Epilogue(apply)


def check(
    c: Convolution,
    schedule: Schedule | None,
    arch: Architecture,
    threads: int,
    seed: int,
    hole: str = "none",
    tolerance: float = 1e-5,
) -> NDArray[np.float32]:
    """y as the kernel computes it, compared with the reference."""
    rng = np.random.default_rng(seed)
    x_shape, y_shape = (c.batch, *c.size, c.channels), (c.batch, *c.outputs, c.filters)
    x_memory = fenced(np.full(span_of(x_shape, c.x_strides), POISON))
    x = strided(x_memory, x_shape, c.x_strides)
    x[...] = rng.standard_normal(x_shape, np.float32)
    weight = rng.standard_normal((c.filters, *c.kernel, c.group_channels), np.float32)
    bias = fenced(rng.standard_normal(c.filters, np.float32))
    want = reference(c, x, weight) + (bias if c.bias else 0)
    bound = reference(replace(c), abs(x), abs(weight)) + 10
    y_span = span_of(y_shape, c.y_strides)
    y_memory = np.full(y_span + 2 * GUARD, POISON)
    y = strided(y_memory[GUARD:], y_shape, c.y_strides)
    residual = fenced(rng.standard_normal(y_span).astype(np.float32))
    scale = fenced(rng.standard_normal(c.filters, np.float32))
    epilogue, buffers = Epilogue(), []
    if hole == "residual":
        epilogue, buffers = residual_and_relu(c.y_strides), [residual, scale]
        want = np.maximum(want + strided(residual, y_shape, c.y_strides) * scale, 0)
    if hole == "coordinates":
        epilogue = coordinates()
        want = want + sum(np.indices(y_shape)[:-1])
    schedule = schedule or candidates(c, arch, threads)[0]
    packed = aligned(packing(c, schedule, arch).apply(weight))
    text = generate(c, schedule, arch, epilogue, "kernel")
    code = jit.load(jit.to_object(text, arch), ["kernel"])
    pointers = [x_memory, packed, bias if c.bias else None, *buffers, y_memory[GUARD:]]
    block = np.array([0 if p is None else p.ctypes.data for p in pointers], np.int64)
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(
        code.address("kernel")
    )
    for thread in rng.permutation(threads):
        call(block.ctypes.data, int(thread), threads)
    what = f"seed {seed}: {c} {schedule} {arch.level} {threads} threads {hole}"
    assert np.all(np.abs(y - want) <= tolerance * bound), what
    touched = np.full(y_memory.shape, False)
    strided_bool = np.lib.stride_tricks.as_strided(touched[GUARD:], y_shape, c.y_strides)
    strided_bool[...] = True
    assert np.isnan(y_memory[~touched]).all(), f"wrote outside of y: {what}"
    return y


def any_padding(rng: np.random.Generator, reach: Sequence[int]) -> tuple[int, ...]:
    """Padding of one side: none, some, or more than a window reaches over."""
    return tuple(int(rng.integers(0, rng.choice([1, r + 1, r + 4]))) for r in reach)


def random_case(rng: np.random.Generator) -> Convolution:
    """Any geometry, small enough to run in milliseconds."""
    rank = int(rng.integers(1, 4))
    most = {1: 60, 2: 20, 3: 8}[rank]
    kernel = tuple(int(k) for k in rng.choice([1, 1, 2, 3, 3, 5, 7], rank))
    kernel = (1,) * rank if rng.random() < 0.3 else kernel
    dilations = tuple(int(d) for d in rng.choice([1, 1, 1, 2, 3, 6], rank))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations)]
    before, after = (any_padding(rng, reach) for _ in range(2))
    size = tuple(
        int(max(rng.choice([1, rng.integers(1, most)], p=[0.1, 0.9]), r - b - a, 1))
        for r, b, a in zip(reach, before, after)
    )
    groups = int(rng.choice([1, 1, 1, 2, 3, 8]))
    channels = groups * int(rng.choice([1, 2, 3, 4, 5, 8, 16, 17, 33]))
    filters = groups * int(rng.choice([1, 2, 3, 4, 5, 8, 15, 16, 17, 31, 32, 40, 65]))
    if rng.random() < 0.25:
        groups = channels = int(rng.choice([1, 3, 8, 16, 24, 37]))
        filters = channels * int(rng.choice([1, 1, 1, 2, 3]))
    return Convolution(
        batch=int(rng.choice([1, 1, 2, 3])),
        size=size,
        channels=channels,
        filters=filters,
        kernel=kernel,
        steps=tuple(int(s) for s in rng.choice([1, 1, 2, 3, 5], rank)),
        dilations=dilations,
        before=before,
        after=after,
        groups=groups,
        bias=bool(rng.random() < 0.7),
    )


def with_random_strides(c: Convolution, rng: np.random.Generator) -> Convolution:
    """The same with x channels-first or a slice, and y a slice of wider channels."""
    kind = rng.integers(0, 4)
    if kind == 0:
        return c
    if kind == 1:
        c = c.flattened()
    x_strides = c.x_strides
    if kind == 2:
        x = np.empty((c.batch, c.channels, *c.size), np.uint8).strides
        x_strides = (x[0], *x[2:], x[1])
    if kind == 3:
        wide = np.empty((c.batch, *c.size, c.channels + 5), np.uint8).strides
        x_strides = tuple(wide)
    y = np.empty((c.batch, *c.outputs, c.filters + int(rng.integers(0, 9))), np.uint8).strides
    return c if kind == 1 else replace(c, x_strides=x_strides, y_strides=tuple(y))


def random_schedule(rng: np.random.Generator) -> Schedule:
    return Schedule(
        outputs=int(rng.choice([1, 2, 4, 6, 8, 14])),
        vectors=int(rng.choice([1, 2, 3, 4])),
        rows=int(rng.choice([1, 1, 2])),
        unroll=int(rng.choice([1, 2, 3, 4])),
        teams=int(rng.choice([0, 1, 2])),
        block=int(rng.choice([0, 0, 1, 3])),
        prefetch=int(rng.choice([0, 1024])),
        ahead=bool(rng.random() < 0.3),
        depth=int(rng.choice([0, 0, 1, 6, 20, 64])),
    )


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("seed", range(60))
def test_random_convolutions(level: str, seed: int) -> None:
    rng = np.random.default_rng(seed + 1000 * LEVELS.index(level))
    c = with_random_strides(random_case(rng), rng)
    schedule = random_schedule(rng) if rng.random() < 0.6 else None
    hole = str(rng.choice(["none", "residual", "coordinates"]))
    check(c, schedule, architecture(level), int(rng.choice([1, 2, 3, 5, 17])), seed, hole)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("seed", range(40))
def test_random_groups(level: str, seed: int) -> None:
    rng = np.random.default_rng(10000 + seed)
    inputs, outputs = (int(n) for n in rng.choice([1, 1, 1, 2, 3, 4, 8], 2))
    groups = int(rng.choice([2, 3, 8, 16, 24, 37, 72]))
    c = random_case(rng)
    c = replace(c, channels=groups * inputs, filters=groups * outputs, groups=groups)
    c = with_random_strides(replace(c, x_strides=(), y_strides=()), rng)
    schedule = random_schedule(rng) if rng.random() < 0.6 else None
    check(c, schedule, architecture(level), int(rng.choice([1, 2, 3, 17])), seed, "residual")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("groups", [1, 4, 16])
@pytest.mark.parametrize("axis", range(3))
def test_an_axis_whose_only_output_lies_in_the_padding(axis: int, groups: int, level: str) -> None:
    one = lambda here, others: tuple(here if i == axis else others for i in range(3))  # noqa: E731
    c = Convolution(
        batch=2,
        size=one(1, 6),
        channels=16,
        filters=16,
        kernel=one(1, 3),
        steps=one(2, 1),
        dilations=(1, 1, 1),
        before=one(1, 2),
        after=one(0, 1),
        groups=groups,
        bias=True,
    )
    assert c.outputs == one(1, 7)
    check(c, None, architecture(level), 2, seed=axis)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("seed", range(20))
def test_winograd(level: str, seed: int) -> None:
    rng = np.random.default_rng(20000 + seed)
    channels, filters = (int(n) for n in rng.choice([3, 8, 16, 24, 33, 64, 100, 130], 2))
    before, after = (tuple(int(p) for p in rng.integers(0, 3, 2)) for _ in range(2))
    size = tuple(int(n) for n in rng.integers(3, 20, 2))
    batch = int(rng.choice([1, 1, 3]))
    c = Convolution(
        batch, size, channels, filters, (3, 3), before=before, after=after, bias=seed % 3 > 0
    )
    schedule = Schedule(
        outputs=int(rng.choice([3, 6, 14])),
        vectors=int(rng.choice([1, 2, 3])),
        unroll=2,
        teams=int(rng.choice([0, 1, 2])),
        winograd=True,
        ahead=bool(rng.random() < 0.5),
    )
    hole = str(rng.choice(["none", "residual", "coordinates"]))
    check(c, schedule, architecture(level), int(rng.choice([1, 2, 3, 17])), seed, hole, 4e-7)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("kernel", "channels"),
    [((1, 1), 1000), ((3, 3), 64), ((3, 3), 200), ((1, 7), 150), ((5, 5), 30), ((17, 17), 2)],
)
@pytest.mark.parametrize("dilation", [1, 2])
def test_long_sums(level: str, kernel: tuple[int, int], channels: int, dilation: int) -> None:
    """Sums in blocks: right, and with the error of a block's length."""
    padding = tuple(k // 2 for k in kernel)
    size = tuple(dilation * (k - 1) + 6 for k in kernel)
    dilations = (dilation, dilation)
    c = Convolution(1, size, channels, 24, kernel, (), dilations, padding, padding)
    for unroll, depth in ((1, 0), (3, 0), (4, 0), (4, 96), (2, 40)):
        schedule = replace(candidates(c, architecture(level), 2)[0], unroll=unroll, depth=depth)
        check(c, schedule, architecture(level), 2, channels, "residual", 4e-7)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("rows", [1, 2, 5, 14, 128, 197])
def test_products(level: str, rows: int) -> None:
    for depth, columns in ((1, 1), (7, 33), (64, 10), (300, 129)):
        c = product(rows, depth, columns)
        check(c, None, architecture(level), 3, rows, "residual")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_every_candidate_is_right(level: str, threads: int) -> None:
    arch = architecture(level)
    convolutions = [
        Convolution(1, (14, 14), 40, 72, (3, 3), before=(1, 1), after=(1, 1)),
        Convolution(2, (7, 7), 64, 64, (5, 5), (2, 2), (1, 1), (2, 2), (2, 2), groups=64),
        Convolution(1, (30, 31), 3, 20, (7, 7), (2, 2), before=(3, 3), after=(3, 3)),
        product(1, 200, 300),
        product(50, 96, 80),
    ]
    for c in convolutions:
        schedules = candidates(c, arch, threads, transforms=True)
        assert 1 <= len(schedules) <= 8
        assert len(set(schedules)) == len(schedules)
        for schedule in schedules:
            check(c, schedule, arch, threads, threads, "residual", 4e-7)


def test_only_who_asks_gets_transformed_weights() -> None:
    c = Convolution(1, (56, 56), 64, 64, (3, 3), before=(1, 1), after=(1, 1))
    arch = architecture("sse2")
    assert not any(s.winograd for s in candidates(c, arch, 2))
    first = candidates(c, arch, 2, transforms=True)[0]
    assert first.winograd and packing(c, first, arch).matrices


@pytest.mark.parametrize("level", LEVELS)
def test_transformed_patches_have_room_on_a_stack(level: str) -> None:
    c = Convolution(1, (32, 32), 1 << 20, 16, (3, 3))
    assert not any(s.winograd for s in candidates(c, architecture(level), 2, transforms=True))


@pytest.mark.parametrize("level", LEVELS)
def test_schedules_that_are_alike_give_the_same_bits(level: str) -> None:
    arch = architecture(level)
    same = (1, 1)
    convolutions = [
        Convolution(1, (14, 14), 40, 72, (3, 3), before=same, after=same),
        Convolution(1, (14, 14), 200, 48, (3, 3), before=same, after=same),
        Convolution(1, (14, 15), 200, 48, (3, 3), (2, 2), (2, 2), same, same),
        Convolution(1, (9, 9), 600, 48, (3, 3), before=same, after=same),
        Convolution(2, (7, 7), 64, 64, (5, 5), (2, 2), same, (2, 2), (2, 2), groups=64),
        Convolution(1, (14, 14), 96, 96, (5, 5), before=(2, 2), after=(2, 2), groups=96),
        Convolution(1, (30, 31), 3, 20, (7, 7), (2, 2), before=(3, 3), after=(3, 3)),
        product(197, 700, 100),
        product(50, 96, 80),
    ]
    tried = 0
    for c in convolutions:
        for transforms in (False, True):
            schedule = candidates(c, arch, 2, transforms)[0]
            first = check(c, schedule, arch, 2, 1, "residual", 4e-7)
            for other in alike(c, schedule, arch, 2, 9):
                y = check(c, other, arch, 2, 1, "residual", 4e-7)
                assert np.array_equal(first.view(np.int32), y.view(np.int32)), (c, schedule, other)
                tried += 1
    assert tried > len(convolutions)
