"""Fresh random inputs for a model, from what its graph says of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Feeds = dict[str, NDArray[Any]]
SIZES = {"batch": 1, "seq": 128}
"""What the symbolic sizes of the exported networks are bound to unless a command says otherwise."""


@dataclass(frozen=True)
class Input:
    """One input of a model with its sizes bound; integers are drawn below `limit`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    limit: int | None = None
    mask: bool = False

    def draw(self, rng: np.random.Generator) -> NDArray[Any]:
        if self.mask:
            length = rng.integers(self.shape[-1] // 2, self.shape[-1], endpoint=True)
            row = (np.arange(self.shape[-1]) < length).astype(self.dtype)
            return np.broadcast_to(row, self.shape).copy()
        if self.limit is not None:
            return rng.integers(self.limit, size=self.shape).astype(self.dtype)
        return rng.standard_normal(self.shape, np.float32).astype(self.dtype)


@dataclass(frozen=True)
class Given:
    """An input that is the same in every run."""

    name: str
    array: NDArray[Any]

    def draw(self, rng: np.random.Generator) -> NDArray[Any]:
        return self.array.copy()


def draw(inputs: Sequence[Input | Given], rng: np.random.Generator) -> Feeds:
    return {x.name: x.draw(rng) for x in inputs}


def read_inputs(path: Path, sizes: Mapping[str, int]) -> list[Input]:
    """The inputs of an ONNX file, unnamed or unbound sizes taken as 1."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    found = []
    for value in graph.input:
        if value.name in weights:
            continue
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        shape = tuple(d.dim_value or sizes.get(d.dim_param, 1) for d in tensor.shape.dim)
        mask = dtype.kind in "iub" and "mask" in value.name and len(shape) > 0
        limit = None if dtype.kind == "f" else index_limit(graph, value.name, weights)
        found.append(Input(value.name, dtype.name, shape, limit, mask))
    return found


def index_limit(graph: Any, name: str, weights: dict[str, tuple[int, ...]]) -> int:
    """How large an integer input may get: the length of the table that it looks up, or 2."""
    same = {name}
    for node in graph.node:
        if node.op_type in ("Cast", "Identity", "Reshape", "Unsqueeze") and node.input[0] in same:
            same.add(node.output[0])
        if node.op_type == "Gather" and node.input[1] in same and node.input[0] in weights:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            return weights[node.input[0]][axis]
    return 2


def weight_bytes(path: Path) -> int:
    """The bytes of a model's initialisers."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    return sum(
        int(np.prod(t.dims, dtype=np.int64))
        * onnx.helper.tensor_dtype_to_np_dtype(t.data_type).itemsize
        for t in graph.initializer
    )
