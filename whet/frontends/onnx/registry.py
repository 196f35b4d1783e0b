"""Which function reads which ONNX operator, and what such a function may ask for.

A reader function carries the operator's name and, where ONNX has changed the meaning, the opset since which
it holds: `Softmax_13`. Its positional arguments are the operator's inputs (None where absent), its keyword
arguments the attributes with ONNX's defaults; an argument called `node` receives the Node being read.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from whet.ir.graph import Value

Reader = Callable[..., Any]


@dataclass(frozen=True)
class Meaning:
    """What an operator means since some opset: the function that reads it."""

    read: Reader

    @cached_property
    def attributes(self) -> frozenset[str]:
        """The attributes that the function understands."""
        parameters = inspect.signature(self.read).parameters.values()
        return frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY) - {"node"}

    @cached_property
    def wants_node(self) -> bool:
        return "node" in inspect.signature(self.read).parameters

    @property
    def takes_any_rank(self) -> bool:
        """Whether it reads tensors of which not even the rank is known."""
        return getattr(self.read, "takes_any_rank", False)


INTERNAL = "whet"  # the domain of nodes that readers put in another's place

READERS: dict[tuple[str, str], dict[int, Meaning]] = {}


def _register(domain: str) -> Callable[[Reader], Reader]:
    def add(fn: Reader) -> Reader:
        name, since = fn.__name__, 1
        head, _, tail = name.rpartition("_")
        if head and tail.isdigit():
            name, since = head, int(tail)
        READERS.setdefault((domain, name), {})[since] = Meaning(fn)
        return fn

    return add


def any_rank(fn: Reader) -> Reader:
    """Marks a reader that does not look at its tensors' shapes: sequences and control flow."""
    fn.takes_any_rank = True  # type: ignore[attr-defined]
    return fn


onnx_op = _register("")
contrib_op = _register("com.microsoft")
ml_op = _register("ai.onnx.ml")
preview_op = _register("ai.onnx.preview")
internal_op = _register(INTERNAL)
training_op = _register("ai.onnx.preview.training")


def meaning(domain: str, operator: str, opset: int) -> Meaning | None:
    """The meaning of an operator at an opset, or None where no reader covers it."""
    meanings = {s: m for s, m in READERS.get((domain, operator), {}).items() if s <= opset}
    return meanings[max(meanings)] if meanings else None


class NeedsValue(Exception):
    """A reader needs the elements of a Value, or its structure, that only a run can tell."""

    def __init__(self, value: Value | None, what: str) -> None:
        super().__init__(f"{what} depends on data that only a run can tell")
        self.value, self.what = value, what


class Refused(Exception):
    """A node that cannot be read: the reason, for the one message that lists them all."""
