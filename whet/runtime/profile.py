"""Profiles: in which ranges the sizes of a model's inputs lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

from whet.errors import InvalidEngine, InvalidSetting, ShapeError
from whet.ir.graph import Graph
from whet.ir.types import TensorType

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Profile:
    """The least, the most likely and the greatest shape of each input whose sizes are not fixed."""

    min: Shapes
    opt: Shapes
    max: Shapes

    def __post_init__(self) -> None:
        for which in ("min", "opt", "max"):
            object.__setattr__(self, which, _shapes(which, getattr(self, which)))
        if not set(self.min) == set(self.opt) == set(self.max):
            raise ShapeError("min, opt and max of a profile must name the same inputs")
        for name in self.min:
            sizes = list(zip(self.min[name], self.opt[name], self.max[name]))
            same_rank = len(self.min[name]) == len(self.opt[name]) == len(self.max[name])
            if not same_rank or any(not 0 <= a <= b <= c for a, b, c in sizes):
                raise ShapeError(
                    f"input {name!r}: min {list(self.min[name])} <= opt {list(self.opt[name])} <= "
                    f"max {list(self.max[name])} must hold for each size"
                )

    def __str__(self) -> str:
        return ", ".join(
            f"{name} {list(low)} to {list(self.max[name])}" for name, low in self.min.items()
        )

    def accepts(self, shapes: Shapes) -> bool:
        """Whether the shapes lie within the profile's ranges."""
        return all(
            len(shapes[name]) == len(low)
            and all(a <= s <= b for a, s, b in zip(low, shapes[name], self.max[name]))
            for name, low in self.min.items()
            if name in shapes
        )

    def to_plain(self) -> dict[str, dict[str, list[int]]]:
        """What JSON can hold of it."""
        return {
            which: {name: list(shape) for name, shape in getattr(self, which).items()}
            for which in ("min", "opt", "max")
        }

    @classmethod
    def from_plain(cls, plain: Any) -> Profile:
        """The profile that `to_plain` gave; raises InvalidEngine for anything else."""
        try:
            return cls(
                *(
                    {n: tuple(map(int, s)) for n, s in plain[w].items()}
                    for w in ("min", "opt", "max")
                )
            )
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise InvalidEngine(f"a profile of the engine is damaged: {error}") from None


def _shapes(which: str, shapes: Any) -> dict[str, tuple[int, ...]]:
    """A profile's shapes as it keeps them."""
    try:
        return {name: tuple(map(index, shape)) for name, shape in shapes.items()}
    except (AttributeError, TypeError):
        raise ShapeError(
            f"{which} of a profile is whole numbers by the inputs' names, such as "
            f"{{'x': [1, 3, 224, 224]}}, not {shapes!r}"
        ) from None


def profiles_in(given: Profile | Sequence[Profile] | None) -> tuple[Profile, ...]:
    """Profiles, of which one may stand alone; raises InvalidSetting for what is none."""
    found = tuple(given) if isinstance(given, list | tuple) else (given,) * (given is not None)
    if not all(isinstance(profile, Profile) for profile in found):
        raise InvalidSetting(f"profiles={given!r}; a whet.Profile is needed, or a list of them")
    return found  # type: ignore[return-value]


def check_profiles(profiles: Sequence[Profile], graph: Graph) -> None:
    """Raises ShapeError where a profile does not fit the model's inputs."""
    kinds = {v.op.name: v.type for v in graph.inputs}  # type: ignore[attr-defined]
    for profile in profiles:
        for name, low in profile.min.items():
            kind = kinds.get(name)
            if kind is None:
                raise ShapeError(
                    f"the profile names the input {name!r}; the model has {', '.join(kinds)}"
                )
            if not isinstance(kind, TensorType) or len(low) != kind.rank:
                raise ShapeError(
                    f"the profile gives {len(low)} sizes for input {name!r}, which is {kind}"
                )
            for size, least, most in zip(kind.shape, low, profile.max[name]):
                if isinstance(size, int) and not least == size == most:
                    raise ShapeError(
                        f"the profile lets a size of input {name!r} vary that is fixed: {kind}"
                    )
