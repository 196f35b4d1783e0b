"""The ai.onnx.ml domain: encoders, scalers and linear models; see also forest.py and svm.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from whet.errors import InvalidModel
from whet.frontends.onnx.model import Tensor
from whet.frontends.onnx.registry import Refused, ml_op
from whet.ir.graph import Value, constant
from whet.ir.sizes import minimum, product
from whet.ir.types import FLOATS
from whet.ops import contract
from whet.ops import elementwise as ew
from whet.ops import movement as mv
from whet.ops import reduce as rd
from whet.ops.index import positions
from whet.ops.ml import Lookup

Strings = tuple[str, ...]
Ints = tuple[int, ...]
Floats = tuple[float, ...]


@ml_op
def ArrayFeatureExtractor(x: Value, indices: Value) -> Value:
    x = mv.unsqueeze(x, 0) if x.rank == 1 else x
    places = mv.reshape(indices, product(indices.shape))
    return mv.Gather(x.rank - 1)(x, places)


@ml_op
def Binarizer(x: Value, *, threshold: float = 0.0) -> Value:
    return ew.Cast(x.dtype)(ew.Less()(ew.const_like(threshold, x), x))


@ml_op
def Scaler(x: Value, *, offset: Floats = (0.0,), scale: Floats = (1.0,)) -> Value:
    wide = as_float(x)
    return (wide - _numbers(offset)) * _numbers(scale)


def as_float(x: Value) -> Value:
    """x in float32, in which the operators of this domain compute."""
    return ew.cast_to(x, "float32")


def _numbers(data: Sequence[float]) -> Value:
    return constant(data[0] if len(data) == 1 else data, "float32")


@ml_op
def Normalizer(x: Value, *, norm: str = "MAX") -> Value:
    wide = as_float(x)
    axes = (x.rank - 1,)
    if norm == "MAX":
        size = rd.Reduce("max", axes)(wide)
    elif norm == "L1":
        size = rd.Reduce("sum", axes)(ew.Abs()(wide))
    elif norm == "L2":
        size = ew.Sqrt()(rd.Reduce("sum", axes)(wide * wide))
    else:
        raise InvalidModel(f"norm {norm!r} is none of MAX, L1, L2")
    return wide / ew.Where()(ew.Equal()(size, 0), ew.const_like(1, size), size)


@ml_op
def Imputer(
    x: Value,
    *,
    imputed_value_floats: Floats = (),
    imputed_value_int64s: Ints = (),
    replaced_value_float: float = 0.0,
    replaced_value_int64: int = 0,
) -> Value:
    is_float = x.dtype in FLOATS
    new: Sequence[float] = imputed_value_floats if is_float else imputed_value_int64s
    old = replaced_value_float if is_float else replaced_value_int64
    if not new:
        raise InvalidModel(f"Imputer has no values for elements of {x.dtype}")
    is_old = ew.IsNaN()(x) if old != old else ew.Equal()(x, ew.const_like(old, x))
    return ew.Where()(is_old, constant(new, x.dtype), x)


@ml_op
def FeatureVectorizer(*xs: Value, inputdimensions: Ints = ()) -> Value:
    sizes = inputdimensions or (None,) * len(xs)
    if len(sizes) != len(xs):
        raise InvalidModel(f"{len(sizes)} dimensions do not fit {len(xs)} inputs")
    columns = [as_float(_row(x)) for x in xs]
    return mv.Concat(1)(*(c if s is None else _fitted(c, s) for c, s in zip(columns, sizes)))


def _row(x: Value) -> Value:
    """x as a matrix; a vector is one row."""
    return mv.unsqueeze(x, 0) if x.rank == 1 else mv.reshape(x, x.shape[0], product(x.shape[1:]))


def _fitted(x: Value, size: int) -> Value:
    """A matrix cut or filled with 0 to `size` columns."""
    kept = minimum(x.shape[1], size)
    x = mv.slice_axis(x, 1, 0, kept)
    missing = size - kept
    return x if missing == 0 else mv.Pad((0, 0), (0, missing))(x, constant(0, x.dtype))


@ml_op
def LabelEncoder(
    x: Value,
    *,
    classes_strings: Strings = (),
    default_int64: int = -1,
    default_string: str = "_Unused",
) -> Value:
    return CategoryMapper(
        x,
        cats_int64s=tuple(range(len(classes_strings))),
        cats_strings=classes_strings,
        default_int64=default_int64,
        default_string=default_string,
    )


@ml_op
def CategoryMapper(
    x: Value,
    *,
    cats_int64s: Ints = (),
    cats_strings: Strings = (),
    default_int64: int = -1,
    default_string: str = "_Unused",
) -> Value:
    numbers, names = np.array(cats_int64s, np.int64), np.array(cats_strings, object)
    if x.dtype == "string":
        return Lookup(names, numbers, np.array(default_int64, np.int64))(x)
    return Lookup(numbers, names, np.array(default_string, object))(x)


@ml_op
def LabelEncoder_2(
    x: Value,
    *,
    default_float: float = -0.0,
    default_int64: int = -1,
    default_string: str = "_Unused",
    default_tensor: Tensor | None = None,
    keys_floats: Floats | None = None,
    keys_int64s: Ints | None = None,
    keys_strings: Strings | None = None,
    keys_tensor: Tensor | None = None,
    values_floats: Floats | None = None,
    values_int64s: Ints | None = None,
    values_strings: Strings | None = None,
    values_tensor: Tensor | None = None,
) -> Value:
    keys = _listed(keys_tensor, keys_floats, keys_int64s, keys_strings)
    values = _listed(values_tensor, values_floats, values_int64s, values_strings)
    defaults = {"f": default_float, "i": default_int64, "O": default_string}
    default: Any = defaults.get(values.dtype.kind, 0)
    if default_tensor is not None:
        default = default_tensor.read().ravel()[0]
    return Lookup(keys, values, np.array(default, values.dtype))(x)


def _listed(
    tensor: Tensor | None, floats: Floats | None, ints: Ints | None, strings: Strings | None
) -> np.ndarray:
    """The one list that is given, as an array."""
    if tensor is not None:
        return tensor.read().ravel()
    for data, dtype in ((floats, np.float32), (ints, np.int64), (strings, object)):
        if data is not None:
            return np.array(data, dtype)
    raise InvalidModel("LabelEncoder has no keys or no values")


@ml_op
def OneHotEncoder(
    x: Value, *, cats_int64s: Ints = (), cats_strings: Strings = (), zeros: int = 1
) -> Value:
    keys = (
        np.array(cats_strings, object) if x.dtype == "string" else np.array(cats_int64s, np.int64)
    )
    at = x if x.dtype in ("string", "int64") else ew.Cast("int64")(x)
    place = np.arange(len(keys))
    index = Lookup(keys, place, np.array(-1) if zeros else None)(at)
    hot = ew.Equal()(mv.unsqueeze(index, x.rank), positions(len(keys), x.rank + 1, x.rank))
    return ew.Cast("float32")(hot)


@ml_op
def LinearRegressor(
    x: Value,
    *,
    coefficients: Floats = (),
    intercepts: Floats = (),
    post_transform: str = "NONE",
    targets: int = 1,
) -> Value:
    return transformed(linear(x, coefficients, intercepts, targets), post_transform)


@ml_op
def LinearClassifier(
    x: Value,
    *,
    classlabels_ints: Ints = (),
    classlabels_strings: Strings = (),
    coefficients: Floats,
    intercepts: Floats = (),
    multi_class: int = 0,
    post_transform: str = "NONE",
) -> tuple[Value, Value]:
    labels = class_labels(classlabels_ints, classlabels_strings)
    count = len(intercepts) or len(labels)
    scores = linear(x, coefficients, intercepts, count)
    if count == 1:
        return binary(scores, labels, post_transform, mirrored=False)
    best = mv.squeeze(rd.ArgReduce("max", 1)(scores), 1)
    return chosen(labels, best), transformed(scores, post_transform)


def linear(x: Value, coefficients: Floats, intercepts: Floats, count: int) -> Value:
    """x times `count` rows of coefficients, plus the intercepts: [N, count]."""
    if len(coefficients) % count or len(intercepts) not in (0, count):
        raise InvalidModel(f"{len(coefficients)} coefficients do not make {count} targets")
    rows = constant(np.array(coefficients, np.float32).reshape(count, -1).T)
    total = contract.MatMul()(as_float(_row(x)), rows)
    return total + constant(intercepts, "float32") if intercepts else total


def class_labels(numbers: Ints, names: Strings) -> np.ndarray:
    """The labels of a classifier; 0 and 1 where it names none."""
    return np.array(names, object) if names else np.array(numbers or (0, 1), np.int64)


def chosen(labels: np.ndarray, index: Value) -> Value:
    """The labels at the indices."""
    return mv.Gather(0)(constant(labels), index)


def binary(
    score: Value, labels: np.ndarray, post_transform: str, mirrored: bool, threshold: float = 0.0
) -> tuple[Value, Value]:
    """The label and both classes' scores, from the second one's: (1 - s, s) or mirrored (-s, s)."""
    index = ew.Cast("int64")(ew.Less()(ew.const_like(threshold, score), mv.squeeze(score, 1)))
    if post_transform == "PROBIT":
        return chosen(labels, index), transformed(score, post_transform)
    if post_transform == "LOGISTIC":
        return chosen(labels, index), ew.Sigmoid()(mv.Concat(1)(ew.Neg()(score), score))
    other = ew.Neg()(score) if mirrored else 1 - score
    return chosen(labels, index), mv.Concat(1)(other, score)


def transformed(scores: Value, name: str) -> Value:
    """What a post_transform makes of scores [N, classes]."""
    match name:
        case "NONE":
            return scores
        case "LOGISTIC":
            return ew.Sigmoid()(scores)
        case "SOFTMAX":
            return rd.Softmax(1)(scores)
        case "SOFTMAX_ZERO":
            return _softmax_of_others(scores)
        case "PROBIT":
            return probit(scores)
    raise InvalidModel(f"there is no post_transform {name!r}")


def _softmax_of_others(scores: Value) -> Value:
    """The softmax among the scores that are not 0; those stay 0."""
    is_zero = ew.LessOrEqual()(ew.Abs()(scores), 1e-7)
    e = ew.Exp()(scores - rd.Reduce("max", (1,))(scores))
    e = ew.Where()(is_zero, ew.const_like(0, scores), e)
    return e / rd.Reduce("sum", (1,))(e)


def probit(p: Value) -> Value:
    """The inverse normal distribution function: Winitzki's estimate (2008), then Newton steps."""
    y = p * 2 - 1
    log = ew.Log()(ew.const_like(1, y) - y * y)
    v = log * 0.5 + 2 / (np.pi * 0.147)
    x = ew.Sign()(y) * ew.Sqrt()(ew.Sqrt()(v * v - log / 0.147) - v)
    for _ in range(2):
        x = x - (ew.Erf()(x) - y) * ew.Exp()(x * x) * (np.sqrt(np.pi) / 2)
    return x * np.sqrt(2)


@ml_op
def ZipMap(x: Value, *, classlabels_int64s: Ints = (), classlabels_strings: Strings = ()) -> Value:
    raise Refused(
        "its output is a sequence of maps, which are no tensors; read the probabilities before it "
        "(skl2onnx leaves it out with options={'zipmap': False})"
    )


@ml_op
def DictVectorizer(
    x: Any, *, int64_vocabulary: Ints = (), string_vocabulary: Strings = ()
) -> Value:
    raise Refused("its input is a map, and a map is no tensor; give the model the vector instead")


@ml_op
def CastMap(
    x: Any, *, cast_to: str = "TO_FLOAT", map_form: str = "DENSE", max_map: int = 1
) -> Value:
    raise Refused("its input is a map, and a map is no tensor; give the model the vector instead")
