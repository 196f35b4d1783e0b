"""Which function reads which ONNX operator, and what such a function may ask for.

A reader function carries the operator's name and, where ONNX has changed the meaning, the opset
since which it holds: `Softmax_13`. Its positional arguments are the operator's inputs (None where
absent), its keyword arguments the attributes with ONNX's defaults; an argument called `node`
receives the Node being read.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, overload

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
    def required(self) -> tuple[tuple[int, str], ...]:
        """The places and names of the inputs that cannot be absent."""
        parameters = list(inspect.signature(self.read).parameters.values())
        return tuple(
            (i, p.name)
            for i, p in enumerate(parameters)
            if p.kind is p.POSITIONAL_OR_KEYWORD and p.annotation == "Value"
        )

    @cached_property
    def wants_node(self) -> bool:
        return "node" in inspect.signature(self.read).parameters

    @property
    def takes_any_rank(self) -> bool:
        """Whether it reads tensors of which not even the rank is known."""
        return getattr(self.read, "takes_any_rank", False)


NEWEST_OPSET = 28  # of ONNX's own domain; operators may have changed since
INTERNAL = "whet"  # the domain of nodes that readers put in another's place

READERS: dict[tuple[str, str], dict[int, Meaning]] = {}


@overload
def _enter(domain: str, fn: Reader) -> Reader: ...
@overload
def _enter(domain: str, fn: str) -> Callable[[Reader], Reader]: ...
def _enter(domain: str, fn: Reader | str) -> Any:
    """Registers a function under its name, or gives a decorator that does so under another one."""
    if isinstance(fn, str):
        return partial(_register, domain, fn)
    return _register(domain, fn.__name__, fn)


def _register(domain: str, name: str, fn: Reader) -> Reader:
    head, _, tail = name.rpartition("_")
    operator, since = (head, int(tail)) if head and tail.isdigit() else (name, 1)
    READERS.setdefault((domain, operator), {})[since] = Meaning(fn)
    return fn


def any_rank(fn: Reader) -> Reader:
    """Marks a reader that does not look at its tensors' shapes: sequences and control flow."""
    fn.takes_any_rank = True  # type: ignore[attr-defined]
    return fn


onnx_op = partial(_enter, "")
contrib_op = partial(_enter, "com.microsoft")
ml_op = partial(_enter, "ai.onnx.ml")
preview_op = partial(_enter, "ai.onnx.preview")
internal_op = partial(_enter, INTERNAL)
training_op = partial(_enter, "ai.onnx.preview.training")


def meaning(domain: str, operator: str, opset: int) -> Meaning | None:
    """The meaning of an operator at an opset, or None where no reader covers it."""
    meanings = {s: m for s, m in READERS.get((domain, operator), {}).items() if s <= opset}
    return meanings[max(meanings)] if meanings else None


class NeedsValue(Exception):  # noqa: N818
    """A reader needs the elements of a Value, or its structure, that only a run can tell."""

    def __init__(self, value: Value | None, what: str) -> None:
        super().__init__(f"{what} depends on data that only a run can tell")
        self.value, self.what = value, what


class Refused(Exception):  # noqa: N818
    """A node that cannot be read: the reason, for the one message that lists them all."""
