"""The recurrent template at many sizes, kinds and options, judged by `reference`."""

from __future__ import annotations

import secrets

import numpy as np
import pytest

from tests.levels import LEVELS, architecture
from whet.engine.weights import ImportedWeights
from whet.ir.evaluate import evaluate
from whet.ir.graph import Graph, Input, make
from whet.ir.sizes import symbol
from whet.ir.types import TensorType, dtype_name
from whet.ops.recurrent import GATES, Recurrent
from whet.runtime.program import Runner
from whet.targets.cpu.device import Device

SIGMOID, TANH, RELU = ("sigmoid", 0.0, 0.0), ("tanh", 0.0, 0.0), ("relu", 0.0, 0.0)
ACTIVATIONS = {"lstm": (SIGMOID, TANH, TANH), "gru": (SIGMOID, TANH), "rnn": (RELU,)}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("units", [1, 17, 48, 100])
@pytest.mark.parametrize("batch", [1, 5, 9])
def test_agrees_with_reference(level: str, kind: str, units: int, batch: int) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    steps = int(rng.integers(5, 9))
    arrays = draw(rng, kind, steps, batch, units)
    options = {"gru": {"reset_after": bool(rng.integers(2))}, "rnn": {"clip": 0.6}}.get(kind, {})
    op = Recurrent(kind, ACTIVATIONS[kind], bool(rng.integers(2)), **options)
    given = {n: a for n, a in enumerate(arrays) if a is not None}
    types = {n: TensorType(dtype_name(a.dtype), a.shape) for n, a in given.items()}
    inputs = {n: make(Input(f"x{n}", kind), ())[0] for n, kind in types.items()}
    graph = Graph(tuple(inputs.values()), op(*(inputs.get(n) for n in range(7))))
    runner = Runner(Device(architecture(level)), ImportedWeights({}), threads=2)
    got = runner.execute(graph, list(given.values()))
    assert not runner.reference_ops
    want = evaluate(graph, {inputs[n]: a for n, a in given.items()})
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("units", [17, 72])
def test_any_number_of_steps_and_rows(level: str, kind: str, units: int) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    options = {"gru": {"reset_after": bool(rng.integers(2))}}.get(kind, {})
    op = Recurrent(kind, ACTIVATIONS[kind], bool(rng.integers(2)), **options)
    arrays = draw(rng, kind, 5, 3, units)
    there = [n for n, a in enumerate(arrays) if a is not None]
    steps, batch = symbol("steps", 1), symbol("batch", 1)
    shapes = [
        (steps, batch, GATES[kind] * units),
        None,
        *[(batch, units)] * 2,
        None,
        None,
        (batch,),
    ]
    inputs = {}
    for n in there:
        array = arrays[n]
        assert array is not None
        kind_of = TensorType(dtype_name(array.dtype), shapes[n] or array.shape)
        inputs[n] = make(Input(f"x{n}", kind_of), ())[0]
    graph = Graph(tuple(inputs.values()), op(*(inputs.get(n) for n in range(7))))
    runner = Runner(Device(architecture(level)), ImportedWeights({}), 2, "none")
    for sizes in ((1, 1), (6, 5), (9, 2)):
        drawn: list[np.ndarray | None] = []
        while [n for n, a in enumerate(drawn) if a is not None] != there:
            drawn = draw(rng, kind, *sizes, units)
        given = {n: a for n, a in enumerate(drawn) if a is not None}
        got = runner.execute(graph, list(given.values()))
        want = evaluate(graph, {inputs[n]: a for n, a in given.items()})
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
    assert not runner.reference_ops and len(runner.plans) == 1


def draw(
    rng: np.random.Generator, kind: str, steps: int, batch: int, units: int
) -> list[np.ndarray | None]:
    """Gates, weight and states, and each optional input half of the time."""

    def numbers(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    def maybe(array: np.ndarray, wanted: bool = True) -> np.ndarray | None:
        return array if wanted and rng.random() < 0.5 else None

    columns = GATES[kind] * units
    weight = (numbers(units, columns) / units**0.5).astype(np.float32)
    cell = numbers(batch, units) if kind == "lstm" else None
    bias = maybe(numbers(units), kind == "gru")
    peephole = maybe(numbers(3, units), kind == "lstm")
    lengths = maybe(rng.integers(0, steps + 1, batch).astype(np.int32))
    gates = numbers(steps, batch, columns)
    return [gates, weight, numbers(batch, units), cell, bias, peephole, lengths]
