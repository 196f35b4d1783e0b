"""What a target tells the planner: which operators it runs whole, which it can emit, how it prefers
its inputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from whet.ir.graph import Op, Value
from whet.ir.types import TensorType, Type
from whet.plan.kernel import Kernel, View

if TYPE_CHECKING:
    from whet.plan.plan import Plan


class Template(Protocol):
    """A target's hand-scheduled way to run one operator."""

    has_epilogue: bool
    """Whether elementwise work on each result can ride along."""

    has_strided_output: bool
    """Whether results can be stored where movements behind the operator want them."""

    def takes(self, op: Op, position: int, view: View) -> bool:
        """Whether input `position` may be read through a view that is not contiguous."""


class Plain:
    """The part of a Template that reads and writes whole tensors, and nothing rides along."""

    has_epilogue = False
    has_strided_output = False

    def takes(self, op: Op, position: int, view: View) -> bool:
        return False


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

    ranges: bool = False
    """Whether kernels take named sizes when they run, so that one serves every value of them."""

    paced_ranges: bool = True
    """Whether they do so, too, where weights come in while they run."""

    overlaps: bool = False
    """Whether steps that do not need each other may run at the same time."""

    makeshift: Callable[[Value], bool] = lambda value: False
    """Whether an operator is run in a slower way only because a run tells its sizes."""


@dataclass(frozen=True)
class Tactic:
    """One way to run a kernel: its settings, and what the cost model thinks of it, where it has an
    opinion; only the ratio of two costs means something."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    cost: float | None = None
    by: str = "cost model"
    """Who chose it, or would: the cost model, or a measurement."""


@dataclass(frozen=True)
class Limits:
    """What a device can do at most in a second, measured or known of it."""

    operations: Mapping[str, float]
    """Multiplications and additions in registers, by dtype."""
    bytes: float
    """Bytes read from beyond the caches that belong to one core."""


@dataclass(frozen=True)
class Footprint:
    """What a session takes of a device's memory, in bytes, foreseen from its plan."""

    weights: int
    """As kernels read them."""
    arena: int
    """For one run at a time: results in between, and what kernels need besides."""
    staged: int
    """Inputs and outputs that are the host's, where the arena has no room for them."""
    code: int
    """About what machine code takes."""
    taken: int
    """All of it, in the pieces that the device is asked for."""


class Executable(Protocol):
    """A Plan compiled for a device."""

    def run(
        self,
        given: Mapping[Value, Any],
        inputs: Sequence[Any],
        out: Mapping[Value, Any],
        run_graph: Callable[..., Any],
    ) -> Mapping[Value, Any]:
        """The plan's outputs, in the `out` arrays where there are; `given` is what was prepared:
        the same object in each run with the same weights."""


class RangeExecutable(Executable, Protocol):
    """One whose kernels take named sizes when they run."""

    def serves(self, sizes: Mapping[str, int]) -> bool:
        """Whether its kernels can be told these."""

    def specialise(self, sizes: Mapping[str, int], ordered: bool) -> None:
        """Has kernels made for the very sizes in the background; with `ordered`, only such as give
        the same bits."""


class Device(Protocol):
    """What runs plans: memory, code, and what they are planned for."""

    capabilities: Capabilities
    architecture: Any
    cache: Any
    compiled: int
    """Kernels for which there was no code yet."""
    planned_for: str
    """All of it that a plan depends on."""

    @property
    def about(self) -> str:
        """What its code is for: the target, the generator's version, the architecture."""

    def legalize(self, value: Value) -> Any:
        """An operator in the target's own terms."""

    def key(self, kernel: Kernel) -> str:
        """What the cache knows the code of a kernel by."""

    def objects(
        self, kernels: Sequence[Kernel], moving: Collection[Kernel] = ()
    ) -> Mapping[Any, bytes]:
        """The code of many kernels, each given as often as it runs, prebuilt, from the cache, or
        compiled now by several processes; nothing is loaded. The buffers of those that are `moving`
        lie elsewhere in each run."""

    def code_besides(self) -> Mapping[str, bytes]:
        """What runs need besides kernels, by key."""

    def executable(self, plan: Plan, threads: int, before: Plan | None = None) -> Executable:
        """A Plan, ready to run. Of one that is run before it the kernels are compiled as well:
        together, so that several processes have one end to wait for."""

    @property
    def quick(self) -> Callable[[Any, Any, Any], Any] | None:
        """Takes an input that is like one it has learnt of, on a caller's stream, and gives None
        for all others; itself None where the device has no such way."""

    def learn(self, x: Any, array: Any, kind: Type, layouts: Any) -> None:
        """Is told what an input of a type was taken as."""

    def reserve(self, kinds: Sequence[TensorType], arena: int) -> None:
        """Is told of all tensors that are about to be kept, and of what a run needs besides."""

    def arrays(self, kinds: Sequence[TensorType]) -> list[Any]:
        """Room for tensors that are kept."""

    def given(self, array: np.ndarray, kept: bool = True) -> Any:
        """A weight or constant where kernels read it: for good, or only while others are made."""

    def room(self, kind: TensorType, arrays: Sequence[Any]) -> Any:
        """Fresh memory for a result of a run with these inputs."""

    def adopt(self, x: Any, what: str, stream: Any = None) -> Any:
        """A tensor that speaks DLPack, as runs take it, in order with a stream of the caller's
        where that is given; None for one in the host's memory."""

    def trim(self) -> None:
        """Gives memory back that nothing uses any more."""

    def tactics(self, kernel: Kernel) -> list[Tactic]:
        """The ways to run a kernel that were weighed, the chosen one first; none where there is
        only one way."""

    def footprint(self, plan: Plan, given: Sequence[Value]) -> Footprint | None:
        """What a session is going to take of the device's own memory for a plan, `given` being
        what it keeps; None for a device that shares the host's."""

    def limits(self) -> Limits | None:
        """What the device can do at most; None where that is not known."""


class RangeDevice(Device, Protocol):
    """One whose kernels take named sizes when they run."""

    def later(self, task: Callable[[], Any]) -> None:
        """Does something in the background, after what is done there already."""
