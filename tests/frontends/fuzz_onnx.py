"""Damages models at random and reads them: `python -m tests.frontends.fuzz_onnx --count 100000`.

Each reading must end in a graph or a whet.Error, in bounded time and memory. What does neither is
written to a folder, as the bytes that were read and the traceback.
"""

from __future__ import annotations

import argparse
import random
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import Message

import whet
from tests.frontends.fuzz_seeds import seeds
from whet.frontends.onnx import from_onnx
from whet.frontends.onnx.region import Region

SECONDS = 10  # for one reading, on a busy machine
MEMORY = 6 << 30  # bytes of address space, NumPy's and its libraries' own among them
EXTREMES = [0, 1, -1, 2, 7, 2**31 - 1, 2**31, -(2**31), 2**40, 2**62, 2**63 - 1, -(2**63)]
ODD_TEXTS = [
    "",
    "x",
    "y",
    "?",
    "a/b",
    "0",
    "Identity",
    "Loop",
    "If",
    "com.microsoft",
    "\x00",
    "é" * 99,
]


class Hang(Exception):  # noqa: N818
    """A reading that took too long."""


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    """The bytes with a few of them flipped, cut, doubled, or replaced."""
    text = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        if not text:
            break
        at = rng.randrange(len(text))
        match rng.randrange(5):
            case 0:
                text[at] ^= 1 << rng.randrange(8)
            case 1:
                text[at] = rng.randrange(256)
            case 2:
                del text[at : at + rng.choice([1, 4, 64])]
            case 3:
                text[at:at] = text[at : at + rng.choice([1, 8, 200])]
            case 4:
                del text[at:]
    return bytes(text)


def messages(root: Message) -> Iterator[Message]:
    """A message and all that it holds."""
    yield root
    for field, value in root.ListFields():
        if field.message_type is not None:
            for item in value if field.is_repeated else [value]:
                yield from messages(item)


def damage_message(model: onnx.ModelProto, rng: random.Random) -> None:
    """Changes one field somewhere in the model to what it could be, but should not."""
    message = rng.choice(list(messages(model)))
    fields = message.ListFields()
    if not fields or rng.random() < 0.1:
        fields = [(f, getattr(message, f.name)) for f in message.DESCRIPTOR.fields]
    field, value = rng.choice(fields)
    if field.is_repeated:
        damage_list(value, field, rng, texts(model))
    elif field.message_type is not None:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, other(field, value, rng, texts(model)))


def texts(model: onnx.ModelProto) -> list[str]:
    """Names that the model uses, to be used where they do not belong."""
    nodes = list(model.graph.node)
    names = [name for node in nodes for name in (*node.input, *node.output, node.op_type)]
    return [*names, *ODD_TEXTS]


def other(field: Any, value: Any, rng: random.Random, names: list[str]) -> Any:
    """Another value for a field of one number or text."""
    if isinstance(value, str):
        return rng.choice(names)
    if isinstance(value, bytes):
        return damaged_bytes(value, rng)
    if isinstance(value, float):
        return rng.choice([0.0, -1.0, 1e38, float("inf"), float("nan")])
    new = rng.choice([*EXTREMES, value + 1, value - 1, rng.randrange(32)])
    narrow = field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_ENUM)
    return new % (1 << 31) if narrow else new


def damage_list(value: Any, field: Any, rng: random.Random, names: list[str]) -> None:
    """Drops, doubles, reorders or changes items of a repeated field."""
    items = list(value)
    if not items:
        return
    at = rng.randrange(len(items))
    match rng.randrange(4):
        case 0:
            del items[at]
        case 1:
            items.insert(at, items[rng.randrange(len(items))])
        case 2:
            rng.shuffle(items)
        case 3 if field.message_type is None:
            items[at] = other(field, items[at], rng, names)
    copies = [
        type(i).FromString(i.SerializeToString()) if isinstance(i, Message) else i for i in items
    ]
    del value[:]
    value.extend(copies)


def variants(rng: random.Random, whole: list[bytes]) -> Iterator[bytes]:
    """Damaged models without end, from sound ones."""
    while True:
        model = onnx.ModelProto.FromString(rng.choice(whole))
        if rng.random() < 0.3:
            yield damaged_bytes(model.SerializeToString(), rng)
            continue
        for _ in range(rng.choice([1, 1, 1, 2, 3, 8])):
            try:
                damage_message(model, rng)
            except (ValueError, TypeError, OverflowError):
                continue  # the message itself does not take the value
        yield model.SerializeToString()


def read_all(data: bytes) -> str:
    """Reads a model and its weights; what came of it, in a word."""
    try:
        imported = from_onnx(data)
        for tensor in imported.weights.values():
            tensor.read()
        if isinstance(imported.graph.late, Region):
            imported.graph.late.to_plain()
        str(imported.graph)
    except whet.Error as error:
        str(error).encode()
        return type(error).__name__
    return "read"


def bounded(work: Callable[[], str], seconds: float) -> str:
    """The result of the work; raises Hang where it takes longer."""

    def stop(*_: Any) -> None:
        raise Hang(f"longer than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return work()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def cases() -> list[bytes]:
    """ONNX's own node cases: every operator there is."""
    from benchmarks.conformance import collect

    return [case.model.SerializeToString() for case in collect()]


def fuzz(
    count: int, seed: int, folder: Path, whole: list[bytes]
) -> tuple[Counter[str], list[Path]]:
    """What became of `count` damaged models, and the files of those that broke the rule."""
    rng = random.Random(seed)
    results: Counter[str] = Counter()
    found = []
    for number, data in zip(range(count), variants(rng, whole)):
        try:
            results[bounded(partial(read_all, data), SECONDS)] += 1
        except (Exception, Hang):
            path = folder / f"{seed}-{number}.onnx"
            path.write_bytes(data)
            path.with_suffix(".txt").write_text(traceback.format_exc())
            results["BROKEN"] += 1
            found.append(path)
    return results, found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--folder", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--cases", action="store_true", help="damage ONNX's node cases too")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    whole = [*seeds(), *(cases() if options.cases else [])]
    results, found = fuzz(options.count, options.seed, options.folder, whole)
    print(f"seed {options.seed}:", ", ".join(f"{n} {what}" for what, n in results.most_common()))
    for path in found:
        print(path)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
