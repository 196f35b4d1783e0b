"""Engines for the tests: a graph, its weights, and the bytes of a file."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from whet.engine.file import engine_bytes
from whet.engine.weights import ImportedWeights
from whet.ir.graph import Graph, Input, Value, Weight, make
from whet.ir.sizes import symbol
from whet.ir.types import NUMPY_DTYPES, TensorType
from whet.ops.elementwise import Cast


@dataclass
class Stored:
    """A tensor that counts how often it is read."""

    type: TensorType
    array: np.ndarray
    reads: int = 0

    def read(self) -> np.ndarray:
        self.reads += 1
        return self.array


def weights(arrays: Mapping[str, np.ndarray]) -> ImportedWeights:
    return ImportedWeights(
        {n: Stored(TensorType(a.dtype.name, a.shape), a) for n, a in arrays.items()}
    )


def chain(arrays: Mapping[str, np.ndarray]) -> Graph:
    """A graph that reads all of these weights."""
    x: Value = make(Input("x", TensorType("float32", (symbol("n"), 4))), ())[0]
    outputs = [
        Cast("float32")(make(Weight(n, TensorType(a.dtype.name, a.shape)), ())[0])
        for n, a in arrays.items()
    ]
    return Graph((x,), (x, *outputs), ("y", *(f"{i}" for i in range(len(outputs)))))


def some_arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Weights of every dtype, of sizes around the borders of rows, chunks and alignment."""
    shapes = [(), (0, 3), (1,), (7,), (3, 5, 2), (64,), (4096,), (513, 8), (1 << 18,), (700, 401)]
    dtypes = [name for name in NUMPY_DTYPES if name not in ("string", "bool")]
    arrays = {
        f"w{i} κ": random_array(rng, dtypes[i % len(dtypes)], shape)
        for i, shape in enumerate(shapes * 2)
    }
    arrays["flags"] = rng.integers(0, 2, 100).astype(bool)
    arrays["a copy"] = arrays["w9 κ"].copy()
    return arrays


def random_array(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Elements of random bits, but for the upper ones of a dtype of less than a byte."""
    kind = NUMPY_DTYPES[dtype]
    raw = np.frombuffer(rng.bytes(int(np.prod(shape)) * kind.itemsize), np.uint8)
    bits = {"int4": 4, "uint4": 4, "float4_e2m1fn": 4, "int2": 2, "uint2": 2}.get(dtype, 8)
    return (raw & ((1 << bits) - 1)).astype(np.uint8).view(kind).reshape(shape)


def an_engine(seed: int = 0) -> tuple[Graph, dict[str, np.ndarray], bytes]:
    """A graph, its arrays and the bytes of its file."""
    arrays = some_arrays(np.random.default_rng(seed))
    graph = chain(arrays)
    options = {"profiles": [{"x": [[1, 4], [2, 4], [9, 4]]}], "name": "κ"}
    data = engine_bytes(
        graph, weights(arrays), metadata=options, kernels={"k": b"code"}, architectures=["avx2"]
    )
    return graph, arrays, data


def a_small_engine() -> bytes:
    """One whose every bit can be flipped in turn."""
    rng = np.random.default_rng(1)
    arrays = {
        "a": rng.standard_normal((3, 4)).astype("float32"),
        "b": rng.standard_normal((5, 1)),
        "c": np.arange(130),
    }
    return engine_bytes(chain(arrays), weights(arrays), metadata={"a": 1})
