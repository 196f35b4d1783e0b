"""Where new weights come from: arrays, an ONNX model, an engine, safetensors, .npz."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from whet.engine.arrays import read_archive
from whet.engine.file import EngineFile
from whet.engine.header import MAGIC
from whet.engine.refit import ArraySource
from whet.engine.safetensors import is_safetensors, read_safetensors
from whet.engine.weights import Source
from whet.errors import InvalidInput
from whet.ir.types import TensorType, dtype_name

if TYPE_CHECKING:
    import onnx

WeightSource: TypeAlias = "Mapping[str, Any] | str | os.PathLike[str] | bytes | onnx.ModelProto"
"""Arrays by name, or a file: .safetensors, .npz, an ONNX model (also its bytes or its ModelProto),
another engine."""


@dataclass(frozen=True)
class NewWeights:
    """Weights by name, read when they are asked for. With `is_whole` they are those of another copy
    of the network, in which none should be missing."""

    tensors: Mapping[str, Source]
    is_whole: bool = False


def weights_in(source: WeightSource) -> NewWeights:
    """A source's weights; raises InvalidInput, InvalidModel or InvalidEngine for what is none."""
    if isinstance(source, Mapping):
        return NewWeights({_name(name): _array(name, x) for name, x in source.items()})
    if not isinstance(source, str | os.PathLike):
        if not isinstance(source, bytes) and not hasattr(source, "SerializeToString"):
            raise InvalidInput(
                f"weights cannot come from a {type(source).__name__}; give arrays by name, or a "
                ".safetensors, .npz, ONNX or engine file"
            )
        return NewWeights(_of_model(source), True)
    path = Path(source)
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"the weights in {str(path)!r} cannot be read: {error}") from None
    if start.startswith(MAGIC) or path.suffix == ".whet":
        return NewWeights(_of_engine(path), True)
    if path.suffix == ".npz":
        return NewWeights({name: _array(name, x) for name, x in read_archive(path).items()})
    if path.suffix == ".safetensors" or is_safetensors(start, path.stat().st_size):
        return NewWeights(read_safetensors(path))
    return NewWeights(_of_model(path), True)


def _of_model(model: Any) -> dict[str, Source]:
    from whet.frontends.onnx import from_onnx

    return dict(from_onnx(model).weights)


def _of_engine(path: Path) -> dict[str, Source]:
    weights = EngineFile.open(path).weights
    there = weights.types.keys() - set(weights.missing)
    return {name: _Kept(weights, name) for name in weights.types if name in there}


@dataclass(frozen=True)
class _Kept:
    """A weight of an engine file."""

    weights: Any
    name: str

    @property
    def type(self) -> TensorType:
        kind: TensorType = self.weights.types[self.name]
        return kind

    def read(self) -> np.ndarray:
        array: np.ndarray = self.weights.array(self.name)
        return array


def _name(name: Any) -> str:
    if not isinstance(name, str):
        raise InvalidInput(f"weights are given by their names in the model, not by {name!r}")
    return name


def _array(name: str, x: Any) -> ArraySource:
    """A copy of the array, which its owner may change afterwards."""
    if not isinstance(x, np.ndarray | np.generic) and hasattr(x, "__dlpack__"):
        x = np.from_dlpack(x)
    try:
        array = np.array(x, order="C")
    except ValueError as error:  # rows of different lengths
        raise InvalidInput(f"the weight {name!r} is no array: {error}") from None
    if array.dtype == object or array.dtype.kind in "US":
        if not all(isinstance(item, str) for item in array.reshape(-1).tolist()):
            raise InvalidInput(f"the weight {name!r} is no array of numbers or of text")
        array = array.astype(object)
    dtype = "string" if array.dtype == object else dtype_name(array.dtype)
    if array.dtype.byteorder not in "=|" and dtype != "string":
        array = array.astype(array.dtype.newbyteorder("="))
    array.setflags(write=False)
    return ArraySource(TensorType(dtype, array.shape), array)
