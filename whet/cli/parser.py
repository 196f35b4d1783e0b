"""How commands declare their options, and the options that several of them share."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from whet.cli.status import WRONG_USE
from whet.errors import WriteError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose help ends with examples that can be copied."""

    def __init__(
        self, *, about: str = "", examples: str = "", notes: str = "", **options: Any
    ) -> None:
        parts = [f"examples:\n{examples}"] * bool(examples) + [notes] * bool(notes)
        super().__init__(
            description=about,
            epilog="\n\n".join(parts),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **options,
        )

    def error(self, message: str) -> NoReturn:
        """Says what is wrong and where help is, without the wall of all options."""
        self.exit(WRONG_USE, f"whet: {message}; see `{self.prog} --help`\n")


def a_size(text: str) -> tuple[str, tuple[int, int, int]]:
    """`batch=4`, or `batch=1:4:16` for the least, the likely and the greatest."""
    name, _, numbers = text.rpartition("=")
    if not name or not re.fullmatch(r"\d+(:\d+:\d+)?", numbers):
        raise argparse.ArgumentTypeError(f"{text!r} says no size; say batch=4, or batch=1:4:16")
    low, likely, high = ([int(n) for n in numbers.split(":")] * 3)[:3]
    if not low <= likely <= high:
        raise argparse.ArgumentTypeError(f"{text!r} falls: say least:likely:greatest")
    return name, (low, likely, high)


def a_count(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def a_difference(text: str) -> float:
    """A number from 0 on."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 on, such as 1e-3")
    return value


def seconds(text: str) -> float:
    """A duration above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return value


def names(text: str) -> list[str]:
    """Words separated by commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def numbers(text: str) -> list[float]:
    """Numbers separated by commas; a fraction such as 1/255 is one too."""
    try:
        return [_number(word) for word in names(text)]
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no list of numbers such as 0.5,0.5"
        ) from None


def _number(text: str) -> float:
    above, _, below = text.partition("/")
    return float(above) / float(below or 1)


def add_model(parser: Parser) -> None:
    """The model, and the sizes that it leaves open."""
    parser.add_argument("model", metavar="MODEL", help="an ONNX model, or an engine (.whet)")
    add_sizes(parser, "the value of a named size of the inputs (1 unless told)")


def add_sizes(parser: Parser, about: str) -> None:
    parser.add_argument(
        "--size", metavar="NAME=N", type=a_size, action="append", default=[], help=about
    )


def add_device(parser: Parser) -> None:
    """On what, and how, a session runs."""
    group = parser.add_argument_group("the session")
    group.add_argument(
        "--device", default="auto", help="auto, cpu, a lower level of it such as cpu:avx2, or cuda"
    )
    group.add_argument(
        "--threads",
        metavar="N",
        type=a_count,
        help="how many take part in a run (one per physical core)",
    )
    group.add_argument(
        "--specialize",
        choices=("lazy", "eager", "none"),
        default="lazy",
        help="kernels for the very sizes met: in the background, before a run ends, or never",
    )
    group.add_argument("--deterministic", action="store_true", help="the same bits in every run")
    group.add_argument(
        "--cache", metavar="FOLDER", default="default", help="where compiled kernels are kept"
    )
    group.add_argument(
        "--no-cache", dest="cache", action="store_const", const=False, help="compile everything"
    )
    group.add_argument(
        "--weight-budget",
        metavar="SIZE",
        help="weights in memory at once: 500M, 50%%, auto; the others stay in a file (CPU)",
    )
    group.add_argument(
        "--allow-code", action="store_true", help="use the machine code in an engine file"
    )


def add_inputs(parser: Parser) -> None:
    """Where a run's inputs come from."""
    group = parser.add_argument_group("the inputs")
    group.add_argument(
        "--input",
        metavar="[NAME=]FILE",
        action="append",
        default=[],
        help=".npy, .npz (arrays by name) or a picture; random without it; may be repeated",
    )
    group.add_argument("--seed", metavar="N", type=int, default=0, help="of random inputs (0)")
    group.add_argument(
        "--cast", action="store_true", help="convert arrays of another dtype instead of refusing"
    )
    pictures = parser.add_argument_group("pictures (need Pillow)")
    pictures.add_argument(
        "--fit",
        choices=("stretch", "crop", "pad"),
        default="crop",
        help="how a picture comes to the model's height and width (crop: the middle of it)",
    )
    pictures.add_argument(
        "--scale",
        metavar="LIST",
        type=numbers,
        default=[1 / 255],
        help="what pixels are multiplied by (1/255)",
    )
    pictures.add_argument(
        "--mean",
        metavar="LIST",
        type=numbers,
        default=[0.0],
        help="then subtracted, one for each channel (0)",
    )
    pictures.add_argument(
        "--std",
        metavar="LIST",
        type=numbers,
        default=[1.0],
        help="then divided by, one for each channel (1)",
    )
    pictures.add_argument(
        "--imagenet",
        action="store_true",
        help="the mean and the deviation that torchvision and timm train with",
    )
    pictures.add_argument("--bgr", action="store_true", help="blue first, as OpenCV has it")


TARGETS = ("output", "json", "trace", "html", "svg")
"""Options that name a file to be written."""


def check_targets(options: argparse.Namespace) -> None:
    """Raises WriteError now for a file that could not be written at the end of long work."""
    for name in TARGETS:
        path = getattr(options, name, None)
        if not isinstance(path, str) or path == "-":
            continue
        folder = Path(path).resolve().parent
        if not folder.is_dir():
            raise WriteError(f"{path!r} cannot be written: there is no folder {folder}")
        if not os.access(folder, os.W_OK) or Path(path).is_dir():
            raise WriteError(f"{path!r} cannot be written; choose another place")


def chosen(sizes: Sequence[tuple[str, tuple[int, int, int]]]) -> dict[str, int]:
    """The likely value of each `--size`."""
    return {name: likely for name, (_, likely, _) in sizes}
