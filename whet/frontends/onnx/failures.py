"""What readers raise, as errors that say what is wrong with a node and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from whet.errors import Error, InvalidModel, OutOfMemory
from whet.frontends.onnx.functions import Expansion
from whet.frontends.onnx.registry import Meaning, NeedsValue, Refused
from whet.frontends.onnx.scope import Poisoned
from whet.ir.atoms import Undecided
from whet.ir.graph import Value


def call(reader: Meaning, inputs: Sequence[Value | None], keywords: Mapping[str, Any]) -> Any:
    """The reader's result. What it raises besides our own errors comes from a node that breaks
    ONNX's rules."""
    for place, name in reader.required:
        if place < len(inputs) and inputs[place] is None:
            raise InvalidModel(f"its input {place} ({name}) is absent, which it needs")
    try:
        return reader.read(*inputs, **keywords)
    except (Error, Refused, NeedsValue, Expansion, Poisoned, NotImplementedError):
        raise
    except Undecided as error:
        raise NeedsValue(None, str(error)) from None
    except TypeError as error:
        if error.__traceback__ is not None and error.__traceback__.tb_next is None:
            raise InvalidModel(f"its inputs or attributes do not fit: {error}") from None
        raise malformed(error) from error
    except MemoryError as error:
        raise OutOfMemory(f"reading it needs more memory than there is: {error}") from error
    except Exception as error:
        raise malformed(error) from error


def malformed(error: Exception) -> InvalidModel:
    return InvalidModel(
        f"it cannot be read ({type(error).__name__}: {error}): its inputs or attributes break "
        "ONNX's rules for the operator, or its reader has a defect"
    )
