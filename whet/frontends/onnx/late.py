"""Late regions at run time: the stage for the values at hand, read once for each kind of them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from whet.errors import InvalidInput
from whet.frontends.onnx.importer import Imported, Importer
from whet.frontends.onnx.known import kind_of
from whet.frontends.onnx.model import Body
from whet.frontends.onnx.records import reading
from whet.frontends.onnx.region import Region, Weights
from whet.frontends.onnx.scope import Scope
from whet.frontends.onnx.watched import with_old_names
from whet.ir.graph import Input, Value, make
from whet.ir.sizes import Size, symbol
from whet.ir.types import OptionalType, SequenceType, TensorType, Type, UnrankedType, map_sizes
from whet.ops.sequence import MakeOptional

MOST_STAGES = 64  # of one region; the one used longest ago is dropped


def import_late(
    region: Region, captured: Mapping[str, Any], weights: Weights | None = None
) -> Imported:
    """The stage of a late region for captured values: arrays, lists of arrays, None where absent.

    All its shapes are numbers. `needed` of the result names the captured values whose elements, or
    whose structure, it was made for; it serves every run in which these and the shapes are the
    same. Tensors come from `weights` by name where given. Raises UnsupportedModel as from_onnx
    does.
    """
    region = region if weights is None else reading(region, weights)
    importer = Importer(region.functions, captured)
    importer.names |= _prefixes(region.body)
    scope = Scope()
    inputs = []
    for name, kind in region.body.inputs:
        assert kind is not None
        inner = concrete(kind, captured[name], name)
        value = None if inner is None else make(Input(name, inner), ())[0]
        if value is not None:
            inputs.append(value)
        scope.values[name] = _optional(kind, value) if isinstance(kind, OptionalType) else value
    return importer.finish(region.body, scope, inputs, [name for name, _ in region.body.outputs])


def _prefixes(body: Body) -> set[str]:
    """What may stand before names already: of bodies whose first runs took the place of their node
    in an earlier stage."""
    parts = (name.split("/") for name in body.own)
    return {"/".join(names[:n]) for names in parts for n in range(1, len(names))}


def _optional(kind: OptionalType, value: Value | None) -> Value:
    return MakeOptional(kind.element)(value) if value is None else MakeOptional(value.type)(value)


def concrete(kind: Type, item: Any, name: str) -> Type | None:
    """The type of a captured value as it is in this run; None for an absent optional."""
    match kind:
        case OptionalType(element=element):
            return None if item is None else concrete(element, item, name)
        case SequenceType():
            if not isinstance(item, list | tuple):
                raise InvalidInput(f"the captured {name!r} must be a list of arrays")
            return map_sizes(kind, _any_unless_known)
        case TensorType(dtype=dtype) | UnrankedType(dtype=dtype):
            found = kind_of(item)
            if not isinstance(found, TensorType) or found.dtype != dtype:
                raise InvalidInput(f"the captured {name!r} must be {kind}, got {found}")
            return found


def _any_unless_known(size: Size) -> Size:
    return size if isinstance(size, int) else symbol("?")


@dataclass
class Stages:
    """The stages of one region that were made so far, by what they were made for. Safe between
    threads."""

    region: Region
    made: OrderedDict[Any, list[Imported]] = field(default_factory=OrderedDict)
    values: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, captured: Mapping[str, Any], weights: Weights | None = None) -> Imported:
        """The stage for these values, made now where none fits."""
        key = self.key(captured)
        with self.lock:
            for stage in self.made.get(key, ()):
                if self._fits(stage, captured):
                    self.made.move_to_end(key)
                    return stage
        stage = import_late(self.region, captured, weights)
        with self.lock:
            self.made.setdefault(key, []).append(stage)
            self.values[id(stage)] = {name: _copy(captured[name]) for name in stage.needed}
            self._forget()
        return stage

    @property
    def dtypes(self) -> dict[str, str]:
        """Of all tensors, those in the bodies of control flow among them, as far as stages have
        read these."""
        with self.lock:
            stages = [stage for found in self.made.values() for stage in found]
        dtypes: dict[str, str] = {}
        for stage in stages:
            dtypes.update(stage.dtypes)
            if isinstance(stage.graph.late, Region):
                dtypes.update(with_old_names(stage.graph.late.stages.dtypes, stage.renamed))
        return dtypes

    def key(self, captured: Mapping[str, Any]) -> tuple[Any, ...]:
        """What all stages depend on: dtypes and shapes."""
        return tuple(_shape(captured[name]) for name in self.region.captured)

    def _fits(self, stage: Imported, captured: Mapping[str, Any]) -> bool:
        known = self.values[id(stage)]
        return all(_same(known[n], captured[n], what) for n, what in stage.needed.items())

    def _forget(self) -> None:
        while sum(map(len, self.made.values())) > MOST_STAGES:
            key, stages = next(iter(self.made.items()))
            del self.values[id(stages.pop(0))]
            if not stages:
                del self.made[key]


def _shape(item: Any) -> Any:
    """What every stage depends on: the dtype and shape of an array, whether an optional is
    there."""
    if item is None or isinstance(item, list | tuple):
        return type(item)
    array = np.asarray(item)
    return array.dtype, array.shape


def _same(known: Any, item: Any, what: str) -> bool:
    """Whether an item is as the known one in structure or in contents."""
    if isinstance(known, list | tuple):
        return len(known) == len(item) and all(_same(a, b, what) for a, b in zip(known, item))
    a, b = np.asarray(known), np.asarray(item)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return what == "structure" or a.tobytes() == b.tobytes()


def _copy(item: Any) -> Any:
    return [_copy(i) for i in item] if isinstance(item, list | tuple) else np.array(item)
