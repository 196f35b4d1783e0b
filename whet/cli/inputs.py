"""Arrays for a run: from .npy and .npz files, from pictures, or random."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from whet.cli.models import chosen_sizes, shape_at
from whet.cli.status import UsageError
from whet.engine.arrays import read_archive, read_array
from whet.ir.graph import Graph, Value
from whet.ir.types import FLOATS, TensorType

if TYPE_CHECKING:
    from whet.runtime.engine import Engine

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"}


def given_inputs(engine: Engine, options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Arrays by name for one run, and in words where they come from."""
    arrays: dict[str, Any] = {}
    for text in options.input:
        arrays.update(read(text, engine, options))
    missing = [name for name in engine.inputs if name not in arrays]
    if not missing:
        return arrays, ", ".join(Path(_split(t, engine)[1]).name for t in options.input)
    unknown = [name for name in arrays if name not in engine.inputs]
    if unknown:
        raise UsageError(
            f"--input gives {', '.join(unknown)}, and nothing for {', '.join(missing)}; "
            f"the model's inputs are {_list(engine)}"
        )
    if arrays:
        raise UsageError(
            f"no --input for {', '.join(missing)}; give each one a file, or none to any of them"
        )
    sizes = chosen_sizes(engine, options)
    return random_inputs(engine, sizes, options.seed), f"random, seed {options.seed}"


def random_inputs(engine: Engine, sizes: Mapping[str, int], seed: int) -> dict[str, Any]:
    """Random arrays by name: floats around 0, indices that their tables have, masks of ones."""
    rng = np.random.default_rng(seed)
    return {
        value.op.name: draw(value, engine.graph, sizes, rng)  # type: ignore[attr-defined]
        for value in engine.graph.inputs
    }


def draw(value: Value, graph: Graph, sizes: Mapping[str, int], rng: np.random.Generator) -> Any:
    """A random array for one input of a graph."""
    name, kind = value.op.name, value.type  # type: ignore[attr-defined]
    if not isinstance(kind, TensorType):
        raise UsageError(f"input {name!r} is {kind}: nothing random fits; give it with --input")
    shape = shape_at(kind, sizes)
    if kind.dtype == "string":
        return rng.choice(np.array(["a", "b", "c"], object), shape)
    if kind.dtype in FLOATS:
        return rng.standard_normal(shape, np.float32).astype(kind.numpy)
    if kind.dtype.startswith("complex"):
        both = rng.standard_normal((*shape, 2), np.float32)
        return (both[..., 0] + 1j * both[..., 1]).astype(kind.numpy)
    if "mask" in name.lower():
        return np.ones(shape, kind.numpy)
    return rng.integers(index_limit(value, graph), size=shape).astype(kind.numpy)


def index_limit(value: Value, graph: Graph) -> int:
    """Below what an integer input stays: the length of the table that it looks up, or 2.

    Any image of bytes takes 256.
    """
    from whet.ops.cast import Cast
    from whet.ops.gather import GatherElements, GatherND
    from whet.ops.movement import Broadcast, Gather, Reshape, Transpose

    same = {value}
    for reader in graph.values:
        if isinstance(reader.op, Cast | Reshape | Transpose | Broadcast):
            if reader.inputs[0] in same:
                same.add(reader)
        elif isinstance(reader.op, Gather | GatherElements) and reader.inputs[1] in same:
            table = reader.inputs[0]
            limit = table.shape[reader.op.axis % table.rank] if table is not None else 2
            return limit if isinstance(limit, int) else 1
        elif isinstance(reader.op, GatherND) and reader.inputs[1] in same:
            return 1
    return 256 if value.dtype == "uint8" else 2


def read(text: str, engine: Engine, options: argparse.Namespace) -> dict[str, Any]:
    """What one `--input` gives: arrays by the names of inputs."""
    name, path = _split(text, engine)
    if not Path(path).exists():
        raise UsageError(f"--input {text}: there is no file {path}")
    suffix = Path(path).suffix.lower()
    if suffix == ".npz":
        return {n: _fit(n, x, engine, options) for n, x in _archive(path, name).items()}
    name = name or _only(engine, text)
    if suffix in PICTURES:
        return {name: picture(path, name, engine, options)}
    if suffix != ".npy":
        other = "a folder" if Path(path).is_dir() else repr(suffix)
        raise UsageError(f"--input {text}: .npy, .npz and pictures can be read, {other} cannot")
    return {name: _fit(name, read_array(path), engine, options)}


def _split(text: str, engine: Engine) -> tuple[str | None, str]:
    """The input's name, where one is given, and the file."""
    name, sign, path = text.partition("=")
    if sign and name in engine.inputs:
        return name, path
    if sign and not Path(text).exists():
        raise UsageError(f"--input {text}: the model has no input {name!r}, but {_list(engine)}")
    return None, text


def _list(engine: Engine) -> str:
    return ", ".join(repr(name) for name in engine.inputs)


def _only(engine: Engine, text: str) -> str:
    if len(engine.inputs) != 1:
        raise UsageError(f"--input {text}: say which one it is: NAME={text}, of {_list(engine)}")
    (name,) = engine.inputs
    return name


def _archive(path: str, name: str | None) -> dict[str, Any]:
    arrays = read_archive(path)
    if name is None:
        return arrays
    if len(arrays) != 1:
        raise UsageError(f"{path} holds {', '.join(arrays)}: give it without {name}=")
    return dict(zip([name], arrays.values()))


def _fit(name: str, array: Any, engine: Engine, options: argparse.Namespace) -> Any:
    """The array, converted where that was asked for; text becomes Python's strings."""
    kind = engine.inputs.get(name)
    if not isinstance(kind, TensorType):
        return array
    if kind.dtype == "string":
        return array.astype(object)
    if array.dtype.kind == "V" and array.dtype.itemsize == kind.numpy.itemsize:
        return array.view(kind.numpy)  # how .npy keeps bfloat16 and its like
    if array.dtype != kind.numpy and options.cast:
        return array.astype(kind.numpy)
    if array.dtype != kind.numpy:
        raise UsageError(
            f"input {name!r} must be {kind.dtype}, the file has {array.dtype}; "
            "convert it, or say --cast"
        )
    return array


MEAN, DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def picture(path: str, name: str, engine: Engine, options: argparse.Namespace) -> Any:
    """A picture as the model's input: resized, scaled, normalised, with its axes in order."""
    kind = engine.inputs[name]
    if not isinstance(kind, TensorType) or kind.rank not in (3, 4):
        raise UsageError(f"input {name!r} is {kind}, which is no picture: it has no 3 or 4 axes")
    sizes = chosen_sizes(engine, options)
    shape = shape_at(kind, sizes)[-3:]
    channel_axis = _channel_axis(shape, name)
    height, width = [size for axis, size in enumerate(shape) if axis != channel_axis]
    pixels = _pixels(path, (width, height), shape[channel_axis], options)
    if kind.dtype != "uint8":
        pixels = _normalised(pixels, options)
    if channel_axis == 0:
        pixels = np.moveaxis(pixels, -1, 0)
    whole = np.broadcast_to(pixels.astype(kind.numpy), shape_at(kind, sizes))
    return np.ascontiguousarray(whole)


def _channel_axis(shape: Sequence[int], name: str) -> int:
    """0 or 2, whichever has the size of a channel axis."""
    for axis in (0, 2):
        if shape[axis] in (1, 3, 4):
            return axis
    raise UsageError(f"input {name!r} has no axis of 1, 3 or 4 channels: {list(shape)}")


def _pixels(
    path: str, size: tuple[int, int], channels: int, options: argparse.Namespace
) -> np.ndarray[Any, Any]:
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise UsageError(
            f"{path}: pictures are read with Pillow, which is not installed; "
            "`pip install pillow`, or give the pixels as .npy"
        ) from None
    try:
        with Image.open(path) as file:
            mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
            image = ImageOps.exif_transpose(file).convert(mode)
    except OSError as error:
        raise UsageError(f"{path} is no picture that Pillow can read: {error}") from None
    resample = Image.Resampling.BILINEAR
    if options.fit == "stretch":
        image = image.resize(size, resample)
    elif options.fit == "pad":
        image = ImageOps.pad(image, size, resample)
    else:
        image = ImageOps.fit(image, size, resample)
    pixels = np.asarray(image).reshape(size[1], size[0], channels)
    return pixels[..., ::-1] if options.bgr else pixels


def _normalised(pixels: np.ndarray[Any, Any], options: argparse.Namespace) -> Any:
    mean, deviation = options.mean, options.std
    if options.imagenet:
        mean, deviation = MEAN, DEVIATION
    channels = pixels.shape[-1]
    for option, values in (("scale", options.scale), ("mean", mean), ("std", deviation)):
        if len(values) not in (1, channels):
            raise UsageError(f"--{option} has {len(values)} numbers for {channels} channels")
    scaled = pixels.astype(np.float32) * np.float32(options.scale)
    return (scaled - np.float32(mean)) / np.float32(deviation)
