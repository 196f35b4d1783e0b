"""What a target tells the planner: which operators it runs whole, which it can emit, how it prefers
its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from whet.ir.graph import Op, Value
from whet.plan.kernel import View


class Template(Protocol):
    """A target's hand-scheduled way to run one operator."""

    has_epilogue: bool
    """Whether elementwise work on each result can ride along."""

    has_strided_output: bool
    """Whether results can be stored where movements behind the operator want them."""

    def takes(self, op: Op, position: int, view: View) -> bool:
        """Whether input `position` may be read through a view that is not contiguous."""


@dataclass(frozen=True)
class Capabilities:
    """The part of a target that planning needs: no device, no compiler."""

    name: str
    legalize: Callable[[Value], Value]
    """An operator in the target's own terms: a template's operator with packed weights, or simpler
    ones."""

    emits: Callable[[Value], bool]
    """Whether a loop nest can hold the operator, with these dtypes."""

    templates: Mapping[type[Op], Template]
