"""The optimizers of ai.onnx.preview.training: a rate, a step number, then the tensors in groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from whet.errors import InvalidModel
from whet.frontends.onnx.registry import Refused, training_op
from whet.ir.graph import Value, constant
from whet.ops import elementwise as ew
from whet.ops import movement as mv


@training_op
def Gradient(*inputs: Value, xs: Any = (), zs: Any = (), y: str = "") -> Any:
    raise Refused("it stands for a training graph; whet runs inference only: export without it")


@training_op
def Adagrad(
    rate: Value,
    step: Value,
    *tensors: Value,
    decay_factor: float = 0.0,
    epsilon: float = 0.0,
    norm_coefficient: float = 0.0,
) -> tuple[Value, ...]:
    """Duchi et al. 2011."""
    rate = one(rate) / (1 + one(step, rate.dtype) * decay_factor)
    results = []
    for x, gradient, squares in groups(tensors, 3):
        g = x * norm_coefficient + gradient
        squares = squares + g * g
        moved = x - ew.Cast(x.dtype)(rate) * g / (ew.Sqrt()(squares) + epsilon)
        results.append((moved, squares))
    return columns(results)


@training_op
def Adam(
    rate: Value,
    step: Value,
    *tensors: Value,
    alpha: float = 0.9,
    beta: float = 0.999,
    epsilon: float = 0.0,
    norm_coefficient: float = 0.0,
    norm_coefficient_post: float = 0.0,
) -> tuple[Value, ...]:
    """Kingma and Ba 2015, with the bias correction in the rate."""
    rate, power = one(rate), one(step, rate.dtype)
    first = 1 - ew.Pow()(constant(alpha, rate.dtype), power)
    second = 1 - ew.Pow()(constant(beta, rate.dtype), power)
    later = ew.Less()(constant(0, rate.dtype), power)
    rate = ew.Where()(later, rate * ew.Sqrt()(second) / first, rate)
    results = []
    for x, gradient, mean, squares in groups(tensors, 4):
        g = x * norm_coefficient + gradient
        mean = mean * alpha + g * (1 - alpha)
        squares = squares * beta + g * g * (1 - beta)
        moved = x - ew.Cast(x.dtype)(rate) * mean / (ew.Sqrt()(squares) + epsilon)
        results.append((moved * (1 - norm_coefficient_post), mean, squares))
    return columns(results)


@training_op
def Momentum(
    rate: Value,
    step: Value,
    *tensors: Value,
    alpha: float,
    beta: float,
    mode: str,
    norm_coefficient: float,
) -> tuple[Value, ...]:
    """Polyak 1964, and the form of Nesterov 1983."""
    if mode not in ("standard", "nesterov"):
        raise InvalidModel(f'the mode is {mode!r}, not "standard" or "nesterov"')
    later = ew.Less()(constant(0, step.dtype), one(step))
    results = []
    for x, gradient, velocity in groups(tensors, 3):
        g = x * norm_coefficient + gradient
        damped = ew.Where()(later, constant(beta, x.dtype), constant(1, x.dtype))
        velocity = velocity * alpha + damped * g
        way = g + velocity * alpha if mode == "nesterov" else velocity
        results.append((x - ew.Cast(x.dtype)(one(rate)) * way, velocity))
    return columns(results)


def one(x: Value, dtype: str | None = None) -> Value:
    """A tensor of one element as a scalar."""
    x = mv.reshape(x)
    return x if dtype is None else ew.Cast(dtype)(x)


def groups(tensors: Sequence[Value], size: int) -> Iterator[tuple[Value, ...]]:
    """The tensors that belong together: all first ones stand first, then all second ones."""
    if not tensors or len(tensors) % size:
        raise InvalidModel(f"{len(tensors)} tensors do not make up groups of {size}")
    count = len(tensors) // size
    yield from zip(*(tensors[i * count : (i + 1) * count] for i in range(size)))


def columns(results: Sequence[tuple[Value, ...]]) -> tuple[Value, ...]:
    """All first results, then all second ones."""
    return tuple(value for column in zip(*results) for value in column)
