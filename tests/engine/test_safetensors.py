"""Safetensors files: what others write is read, and what is wrong with one is said."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from whet.engine.safetensors import DTYPES, read_safetensors
from whet.engine.sources import weights_in
from whet.errors import InvalidModel
from whet.ir.types import NUMPY_DTYPES


def written(path: Path, arrays: dict[str, np.ndarray], **changes: object) -> Path:
    """The file as the format's specification says, written independently of the reader."""
    names = {numpy: name for name, numpy in DTYPES.items()}
    header: dict = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, a in arrays.items():
        end = len(data) + a.nbytes
        kind = names[a.dtype.name]
        header[name] = {"dtype": kind, "shape": list(a.shape), "data_offsets": [len(data), end]}
        data += a.tobytes()
    for name, row in changes.items():
        header[name] = {**header.get(name, {}), **row} if isinstance(row, dict) else row
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def some() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = [(3, 5), (), (0, 4), (7,)]
    arrays = {}
    for i, name in enumerate(DTYPES.values()):
        raw = rng.integers(0, 2, (*shapes[i % 4], NUMPY_DTYPES[name].itemsize), np.uint8)
        arrays[f"{i}.{name}"] = raw.view(NUMPY_DTYPES[name])[..., 0]
    return arrays


def test_every_dtype(tmp_path):
    arrays = some()
    found = read_safetensors(written(tmp_path / "m.safetensors", arrays))
    assert found.keys() == arrays.keys()
    for name, stored in found.items():
        array = stored.read()
        assert array.dtype == arrays[name].dtype and array.shape == arrays[name].shape
        assert array.tobytes() == arrays[name].tobytes()


def test_the_kind_of_file_is_seen_in_it(tmp_path):
    path = written(tmp_path / "weights.bin", {"a": np.ones(3, np.float32)})
    new = weights_in(path)
    assert list(new.tensors) == ["a"] and not new.is_whole
    np.savez(tmp_path / "w.npz", a=np.ones(3), b=np.zeros((2, 2), ml_dtypes.bfloat16).astype("f4"))
    assert list(weights_in(tmp_path / "w.npz").tensors) == ["a", "b"]


A = {"a": np.arange(4, dtype=np.float32), "b": np.ones(2, np.int64)}


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"a": {"dtype": "F31"}}, "dtype 'F31'"),
        ({"a": {"shape": [5]}}, r"'a' is not float32\[5\]"),
        ({"a": {"data_offsets": [0, 99]}}, "'a' is not"),
        ({"b": {"data_offsets": [20, 36]}}, "'b' starts at 20"),
        ({"b": {"data_offsets": [8, 24]}}, "'b' starts at 8"),
        ({"c": {"dtype": "U8", "shape": [1], "data_offsets": [32, 33]}}, "ends after the file"),
        ({"a": {"shape": [-4]}}, "a size must be"),
        ({"a": {"more": 1}}, "no such record"),
        ({"a": 3}, "no such record"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, changes, said):
    path = written(tmp_path / "m.safetensors", A, **changes)
    with pytest.raises(InvalidModel, match=said):
        read_safetensors(path)


@pytest.mark.parametrize("seed", range(40))
def test_damage_is_an_error_or_other_elements(tmp_path, seed):
    data = bytearray(written(tmp_path / "m.safetensors", A).read_bytes())
    rng = np.random.default_rng(seed)
    for _ in range(int(rng.integers(1, 4))):
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    (tmp_path / "m.safetensors").write_bytes(data[: int(rng.integers(len(data) + 1))])
    try:
        for tensor in read_safetensors(tmp_path / "m.safetensors").values():
            tensor.read()
    except InvalidModel:
        pass
    except Exception as error:
        # An array of flags that holds something else says so when it is read.
        assert type(error).__name__ == "InvalidEngine", error
