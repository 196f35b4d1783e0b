"""Everything whet raises on purpose. Each class is also the built-in error a caller would
expect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class Error(Exception):
    """The base of all errors that whet raises: it says what is wrong, where, and what to do."""

    node: str | None = None
    """The node of the model at which it arose, where it arose at one."""


def located(error: Error, node: str, operator: str = "") -> Error:
    """The error with the node that it arose at; of several the innermost is the one named."""
    if isinstance(error, UnsupportedModel) or error.node is not None:
        return error
    new = type(error)(f'at node "{node}"{f" ({operator})" if operator else ""}: {error}')
    new.node = node
    return new


class ShapeError(Error, ValueError):
    """Sizes that an operator, a profile or a session does not accept."""


class TypeMismatch(Error, TypeError):
    """Element types or kinds of value that an operator or a session does not accept."""


class InvalidModel(Error, ValueError):
    """A model file that is damaged, contradicts itself or breaks its format's rules."""


class InvalidEngine(Error, ValueError):
    """An engine file that is damaged, foreign, or from a later format version."""


class MissingWeights(Error, LookupError):
    """A run of an engine some of whose weights are not there yet: `names` are those."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        super().__init__(
            f"weights are missing; give them to the engine with `refit`: {', '.join(self.names)}"
        )


class RefitError(Error, ValueError):
    """New weights that an engine does not take, with every reason; it keeps the weights it had."""

    def __init__(
        self,
        missing: Sequence[str] = (),
        unknown: Sequence[str] = (),
        mismatched: Sequence[str] = (),
        frozen: Sequence[str] = (),
    ) -> None:
        self.missing, self.unknown = tuple(missing), tuple(unknown)
        self.mismatched, self.frozen = tuple(mismatched), tuple(frozen)
        kinds = {
            "missing": self.missing,
            "unknown": self.unknown,
            "of another type": self.mismatched,
            "other than the shapes or numbers that it was built for": self.frozen,
        }
        lines = "\n".join(f"  {kind}: {', '.join(names)}" for kind, names in kinds.items() if names)
        super().__init__(f"the engine keeps the weights it had; of those given, some are\n{lines}")


class InvalidInput(Error, ValueError):
    """A run's inputs or outputs: a missing or unknown name, a wrong dtype or shape."""


class IndexOutOfRange(Error, IndexError):
    """An index computed by the network lies outside the tensor that it indexes."""


class CompileError(Error, RuntimeError):
    """Code that a target could not compile: a defect of whet, reported with the kernel's name."""


class DeviceError(Error, RuntimeError):
    """A device that is not there, refuses, or disappeared."""


class Cancelled(Error, RuntimeError):
    """A build, or the compiling for a session, that its progress monitor ended; nothing of it is
    left."""


class CacheError(Error, OSError):
    """A cache folder that cannot be used, or an entry that must not be."""


class WriteError(Error, OSError):
    """A file that could not be written whole; nothing of it is left, and what was there before
    is."""


class InvalidSetting(Error, ValueError):
    """An argument or an environment variable with a value that it cannot have."""


class OutOfMemory(Error, MemoryError):
    """More memory than there is; the message says how much was planned."""


@dataclass(frozen=True)
class Refusal:
    """One node that cannot be read, and why."""

    node: str
    operator: str
    opset: int
    reason: str

    def __str__(self) -> str:
        return f'{self.operator} (opset {self.opset}) at node "{self.node}": {self.reason}'


class UnsupportedModel(Error, NotImplementedError):
    """A model with nodes that cannot be read: one message that lists all of them."""

    def __init__(self, refusals: Sequence[Refusal]) -> None:
        self.refusals = tuple(refusals)
        lines = "\n".join(f"  {refusal}" for refusal in self.refusals)
        count = f"{len(self.refusals)} node{'s' if len(self.refusals) > 1 else ''}"
        super().__init__(f"{count} of the model cannot be read:\n{lines}")
