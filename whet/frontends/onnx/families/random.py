"""ONNX operators that draw random numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from whet.frontends.onnx.families.generate import element_type
from whet.frontends.onnx.registry import onnx_op
from whet.ir.graph import Token, Value, constant
from whet.ir.sizes import Size
from whet.ops import elementwise as ew
from whet.ops import movement as mv
from whet.ops import reduce as rd
from whet.ops.random import Random

if TYPE_CHECKING:
    from whet.frontends.onnx.importer import Reading


def draw(kind: str, shape: tuple[Size, ...], dtype: str, seed: float | None) -> Value:
    """Draws of their own, or the seed's; dtypes narrower than float32 are drawn as that."""
    wide = "float64" if dtype == "float64" else "float32"
    token = Token() if seed is None else None
    return Random(kind, shape, wide, None if seed is None else int(seed), token)()


@onnx_op
def RandomUniform(
    *,
    shape: tuple[int, ...],
    dtype: int = 1,
    high: float = 1.0,
    low: float = 0.0,
    seed: float | None = None,
) -> Value:
    return _uniform(shape, element_type(dtype, "float32"), low, high, seed)


@onnx_op
def RandomUniformLike(
    x: Value,
    *,
    dtype: int | None = None,
    high: float = 1.0,
    low: float = 0.0,
    seed: float | None = None,
) -> Value:
    return _uniform(x.shape, element_type(dtype, x.dtype), low, high, seed)


def _uniform(
    shape: tuple[Size, ...], dtype: str, low: float, high: float, seed: float | None
) -> Value:
    return ew.cast_to(draw("uniform", shape, dtype, seed) * (high - low) + low, dtype)


@onnx_op
def RandomNormal(
    *,
    shape: tuple[int, ...],
    dtype: int = 1,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
) -> Value:
    return _normal(shape, element_type(dtype, "float32"), mean, scale, seed)


@onnx_op
def RandomNormalLike(
    x: Value,
    *,
    dtype: int | None = None,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
) -> Value:
    return _normal(x.shape, element_type(dtype, x.dtype), mean, scale, seed)


def _normal(
    shape: tuple[Size, ...], dtype: str, mean: float, scale: float, seed: float | None
) -> Value:
    return ew.cast_to(draw("normal", shape, dtype, seed) * scale + mean, dtype)


@onnx_op
def Bernoulli(p: Value, *, dtype: int | None = None, seed: float | None = None) -> Value:
    u = draw("uniform", p.shape, p.dtype, seed)
    return ew.cast_to(ew.Less()(u, ew.cast_to(p, u.dtype)), element_type(dtype, p.dtype))


@onnx_op
def Multinomial(
    logits: Value, *, dtype: int = 6, sample_size: int = 1, seed: float | None = None
) -> Value:
    """The number of classes whose cumulative probability a uniform draw has passed."""
    wide = ew.cast_to(logits, "float64")
    batch, classes = logits.shape
    passed = rd.Cumulative("sum", 1)(rd.Softmax(1)(wide))
    u = draw("uniform", (batch, sample_size), "float64", seed)
    above = ew.LessOrEqual()(mv.unsqueeze(passed, 1), mv.unsqueeze(u, 2))
    # The last class is not counted: rounding may leave the whole sum just below a draw.
    above = mv.slice_axis(above, 2, 0, classes - 1)
    count = rd.Reduce("sum", (2,))(ew.Cast("int64")(above))
    return ew.cast_to(mv.squeeze(count, 2), element_type(dtype, "int32"))


@onnx_op
def Dropout(x: Value, *, ratio: float = 0.5) -> tuple[Value, Value]:
    return x, mv.broadcast_to(constant(True), *x.shape)


@onnx_op
def Dropout_12(
    x: Value,
    ratio: Value | None = None,
    training_mode: Value | None = None,
    *,
    seed: int | None = None,
    node: Reading,
) -> tuple[Value, Value]:
    if training_mode is None:
        return Dropout(x)
    training = node.known(training_mode)
    if training is not None and not training.item():
        return Dropout(x)
    return _dropout(x, constant(0.5, x.dtype) if ratio is None else ratio, training_mode, seed)


def _dropout(x: Value, ratio: Value, training: Value, seed: int | None) -> tuple[Value, Value]:
    """Draws a mask and scales what is kept; a ratio of 0 keeps all of it."""
    u = draw("uniform", x.shape, "float64", seed)
    share = mv.reshape(ew.Cast("float64")(ratio))
    share = ew.Where()(mv.reshape(training), share, ew.const_like(0.0, share))
    mask = ew.LessOrEqual()(share, u)

    def scaled(wide: Value) -> Value:
        return ew.Where()(mask, wide / ew.cast_to(1 - share, wide.dtype), ew.const_like(0, wide))

    return ew.rounded_once(scaled, x), mask
