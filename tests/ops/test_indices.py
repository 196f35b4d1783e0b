"""Indices outside what they index are an error that says which, never a wrong read or write."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from whet.engine.weights import ImportedWeights
from whet.errors import IndexOutOfRange, ShapeError
from whet.ir.evaluate import evaluate
from whet.ir.graph import Graph, Input, Op, make
from whet.ir.types import TensorType, dtype_name
from whet.ops import gather, movement
from whet.runtime.program import Runner
from whet.targets.cpu import host
from whet.targets.cpu.device import Device

DATA = np.arange(12, dtype=np.float32).reshape(3, 4)


def apply(op: Op, *arrays: Any) -> np.ndarray:
    arrays = tuple(map(np.asarray, arrays))
    types = (TensorType(dtype_name(a.dtype), a.shape) for a in arrays)
    inputs = tuple(make(Input(f"x{i}", t), ())[0] for i, t in enumerate(types))
    return evaluate(Graph(inputs, (op(*inputs),)), dict(zip(inputs, arrays)))[0]


@pytest.mark.parametrize("index", [3, -4, 2**40, -(2**62)])
def test_an_index_outside_is_named(index: int) -> None:
    row = np.full((1, 4), index)
    update = np.zeros((1, 4), np.float32)
    with pytest.raises(IndexOutOfRange, match=str(index)):
        apply(movement.Gather(0), DATA, [0, index])
    with pytest.raises(IndexOutOfRange, match=str(index)):
        apply(gather.GatherElements(0), DATA, row)
    with pytest.raises(IndexOutOfRange, match=str(index)):
        apply(gather.GatherND(), DATA, [[index, 0]])
    for kind in (None, "sum"):
        with pytest.raises(IndexOutOfRange, match=str(index)):
            apply(gather.ScatterElements(0, kind), DATA, row, update)
        with pytest.raises(IndexOutOfRange, match=str(index)):
            apply(gather.ScatterND(kind), DATA, [[index]], update)


def test_indices_count_from_the_end() -> None:
    np.testing.assert_array_equal(apply(movement.Gather(1), DATA, [-1, -4]), DATA[:, [3, 0]])
    np.testing.assert_array_equal(apply(gather.GatherND(), DATA, [[-1, -2]]), [10])


@pytest.mark.parametrize("shape", [(4, 1), (3, 4, 1)])
def test_indices_of_another_form_are_refused(shape: tuple[int, ...]) -> None:
    indices = np.zeros(shape, np.int64)
    with pytest.raises(ShapeError):
        apply(gather.GatherElements(1), DATA, indices)
    with pytest.raises(ShapeError):
        apply(gather.ScatterElements(1), DATA, indices, indices.astype(np.float32))


def test_nothing_is_read_for_no_indices() -> None:
    none = np.zeros((0,), np.int64)
    assert apply(movement.Gather(0), DATA, none).shape == (0, 4)
    assert apply(movement.Gather(0), np.zeros((0, 4), np.float32), none).shape == (0, 4)
    got = apply(gather.ScatterND(), DATA, np.zeros((0, 1), np.int64), np.zeros((0, 4), np.float32))
    np.testing.assert_array_equal(got, DATA)


def test_more_indices_than_axes_are_refused() -> None:
    with pytest.raises(ShapeError):
        apply(gather.GatherND(), DATA, [[0, 0, 0]])
    with pytest.raises(ShapeError):
        apply(gather.GatherND(2), DATA, np.zeros((3, 4), np.int64))


@pytest.mark.parametrize("index", [3, -4, 2**40, -(2**62)])
def test_nothing_is_written_outside_by_kernels(index: int) -> None:
    zeros = np.zeros((1, 4), np.float32)
    for op, place in [
        (gather.ScatterElements(0), np.full((1, 4), index)),
        (gather.ScatterElements(0, "sum"), np.full((1, 4), index)),
        (gather.ScatterND(), np.array([[index]])),
        (gather.ScatterND("max"), np.array([[index]])),
    ]:
        for data in (DATA, np.zeros((0, 4), np.float32)):
            with pytest.raises(IndexOutOfRange, match="Scatter"):
                run_on_cpu(op, data, place, zeros)


def run_on_cpu(op: Op, *arrays: np.ndarray) -> np.ndarray:
    types = (TensorType(dtype_name(a.dtype), a.shape) for a in arrays)
    inputs = tuple(make(Input(f"x{i}", t), ())[0] for i, t in enumerate(types))
    runner = Runner(Device(host.architecture()), ImportedWeights({}), threads=2)
    (result,) = runner.execute(Graph(inputs, (op(*inputs),)), arrays)
    assert not runner.reference_ops
    return result
