"""ONNX operators that make tensors from little or nothing: constants, ranges, windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from whet.errors import InvalidModel
from whet.frontends.onnx.model import Tensor
from whet.frontends.onnx.registry import onnx_op
from whet.ir.graph import MOST_CONTENTS, Value, constant
from whet.ir.sizes import product
from whet.ops import movement as mv

if TYPE_CHECKING:
    from whet.frontends.onnx.importer import Reading


@onnx_op
def Constant(
    *,
    value: Tensor | None = None,
    sparse_value: Tensor | None = None,
    value_float: float | None = None,
    value_floats: Sequence[float] | None = None,
    value_int: int | None = None,
    value_ints: Sequence[int] | None = None,
    value_string: str | None = None,
    value_strings: Sequence[str] | None = None,
    node: Reading,
) -> Value:
    tensor = value or sparse_value
    if tensor is not None:
        return _stored(tensor, node)
    forms: list[tuple[Any, str]] = [
        (value_float, "float32"),
        (value_floats, "float32"),
        (value_int, "int64"),
        (value_ints, "int64"),
        (value_string, "string"),
        (value_strings, "string"),
    ]
    for data, dtype in forms:
        if data is not None:
            return constant(data, dtype)
    raise InvalidModel("a Constant has none of the attributes that could give its value")


def _stored(tensor: Tensor, node: Reading) -> Value:
    """A large constant is a weight like any initializer, under the name of the node's output."""
    if product(tensor.type.shape) > MOST_CONTENTS:  # type: ignore[operator]
        name = node.scope.prefix + node.node.outputs[0]
        return node.importer.weight(name, tensor)
    return constant(tensor.read())


@onnx_op
def ConstantOfShape(shape: Value, *, value: Tensor | None = None, node: Reading) -> Value:
    sizes = node.sizes(shape, "the shape of ConstantOfShape")
    fill = np.zeros(1, np.float32) if value is None else value.read()
    return mv.broadcast_to(constant(fill.reshape(())), *sizes)
