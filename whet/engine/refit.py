"""Weights that are exchanged after an engine was built: which may be, and where new ones lie."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np

from whet.engine.elements import pack
from whet.engine.weights import Source, WeightStore
from whet.errors import MissingWeights, RefitError
from whet.ir.types import TensorType


@dataclass(frozen=True)
class ArraySource:
    """An array as a tensor to read."""

    type: TensorType
    array: np.ndarray

    def read(self) -> np.ndarray:
        return self.array


class LayeredWeights:
    """Weights of which some were given later, and some, `withheld`, are not given yet."""

    def __init__(
        self,
        base: WeightStore,
        given: Mapping[str, Source] | None = None,
        withheld: Collection[str] = (),
    ) -> None:
        self.base, self.given = base, dict(given or {})
        self.missing = frozenset((*base.missing, *withheld)) - self.given.keys()

    @property
    def types(self) -> Mapping[str, TensorType]:
        return self.base.types

    def array(self, name: str) -> np.ndarray:
        if name in self.missing:
            raise MissingWeights(sorted(self.missing))
        source = self.given.get(name)
        if source is None:
            return self.base.array(name)
        array: np.ndarray = source.read()
        return array

    def release(self, name: str) -> None:
        if name not in self.given and name not in self.missing:
            self.base.release(name)

    def exchanged(self, given: Mapping[str, Source]) -> LayeredWeights:
        """The same with other weights under some names."""
        return LayeredWeights(self.base, {**self.given, **given}, self.missing)


class CurrentWeights:
    """An engine's weights as they are now; `store` is replaced as a whole."""

    def __init__(self, store: WeightStore) -> None:
        self.store = store if isinstance(store, LayeredWeights) else LayeredWeights(store)

    @property
    def types(self) -> Mapping[str, TensorType]:
        return self.store.types

    @property
    def missing(self) -> Collection[str]:
        return self.store.missing

    def array(self, name: str) -> np.ndarray:
        return self.store.array(name)

    def release(self, name: str) -> None:
        self.store.release(name)


@dataclass(frozen=True)
class Names:
    """What an engine knows of its model's weights by name."""

    types: Mapping[str, TensorType]
    """Those that its graph reads."""
    frozen: Mapping[str, str] = field(default_factory=dict)
    """Those that were read as shapes or numbers when it was built, with a digest of each."""
    unused: Collection[str] = ()
    """Those that nothing reads any more."""
    frozen_types: Mapping[str, TensorType] = field(default_factory=dict)
    """Of the frozen ones, where the engine can be made anew with others."""

    @property
    def free(self) -> dict[str, TensorType]:
        """Those that can be exchanged with the graph as it is."""
        return {name: kind for name, kind in self.types.items() if name not in self.frozen}

    @property
    def refittable(self) -> dict[str, TensorType]:
        """All that can be exchanged."""
        return {**self.free, **self.frozen_types}

    def chosen(self, given: Mapping[str, Source], wanted: Collection[str]) -> dict[str, Source]:
        """Of the weights given, those to exchange; raises RefitError with all that is wrong.

        `wanted` are those that must be among them. Of the frozen ones those are chosen that differ.
        """
        free, refittable = self.free, self.refittable
        known = refittable.keys() | set(self.unused) | self.frozen.keys()
        changed = {n for n in given if n in self.frozen and digest(given[n]) != self.frozen[n]}
        problems = {
            "missing": [n for n in wanted if n in free and n not in given],
            "unknown": [n for n in given if n not in known],
            "mismatched": [
                f"{n} ({kind} is needed, not {given[n].type})"
                for n, kind in refittable.items()
                if n in given and given[n].type != kind
            ],
            "frozen": [n for n in given if n in changed - self.frozen_types.keys()],
        }
        if any(problems.values()):
            raise RefitError(**problems)
        return {n: source for n, source in given.items() if n in free or n in changed}


def digest(source: Source) -> str:
    """Tells weights apart by type and elements."""
    array, dtype = np.asarray(source.read()), source.type.dtype
    hashed = blake2b(f"{source.type} ".encode(), digest_size=16)
    hashed.update(repr(array.tolist()).encode() if dtype == "string" else pack(array, dtype).data)
    return hashed.hexdigest()


def same_weights(
    store: WeightStore, others: Mapping[str, Source], names: Collection[str]
) -> list[str]:
    """The names under which two sources hold the same elements."""
    return [
        n
        for n in names
        if n in others
        and n not in store.missing
        and others[n].type == store.types[n]
        and digest(others[n]) == digest(stored(store, n))
    ]


def stored(store: WeightStore, name: str) -> ArraySource:
    """A weight of a store as a tensor to read."""
    return ArraySource(store.types[name], store.array(name))
