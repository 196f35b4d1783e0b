"""Arrays in NumPy's files: those of a .npz by their names, or the one of a .npy."""

from __future__ import annotations

import os
import zipfile
import zlib
from typing import Any

import numpy as np

from whet.errors import InvalidInput


def read_archive(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of a .npz; raises InvalidInput for what is none."""
    found = _read(path)
    if isinstance(found, np.ndarray):
        raise InvalidInput(f"{_name(path)} holds one array, as .npy does, and no archive of them")
    return found


def read_array(path: str | os.PathLike[str]) -> np.ndarray:
    """The array of a .npy; raises InvalidInput for what is none."""
    found = _read(path)
    if isinstance(found, dict):
        raise InvalidInput(f"{_name(path)} is an archive of arrays: call it .npz")
    return found


def _read(path: str | os.PathLike[str]) -> Any:
    try:
        with open(path, "rb") as file:
            # Pickled objects could run code; strings are read as NumPy's own text.
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return found
            return {name: found[name] for name in found.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        why = str(error)
        if "pickle" in why:  # NumPy would have whoever asks it read all the same
            why = "it is no file of NumPy's, or one of Python objects"
        raise InvalidInput(
            f"{_name(path)} holds no arrays that NumPy can read: {why}; numpy.save and numpy.savez "
            "write them"
        ) from None


def _name(path: str | os.PathLike[str]) -> str:
    return repr(os.fspath(path))
