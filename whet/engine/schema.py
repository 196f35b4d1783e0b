"""What an engine file may name: the operators by class name, and the types of their attributes."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

import whet.ir
import whet.ops
from whet.ir.graph import Graph, Op, Token
from whet.ir.sizes import Expr, Size
from whet.ir.types import OptionalType, SequenceType, TensorType, Type, UnrankedType

Check = Callable[[Any], bool]

# The names that annotations use, also where the operator's own module imports them for types only.
_NAMES: dict[str, Any] = {
    "Expr": Expr,
    "Graph": Graph,
    "Op": Op,
    "OptionalType": OptionalType,
    "SequenceType": SequenceType,
    "Size": Size,
    "TensorType": TensorType,
    "Token": Token,
    "Type": Type,
    "UnrankedType": UnrankedType,
}


@dataclass(frozen=True)
class Schema:
    """One operator class: its attributes, each with the check that a value of it must pass."""

    operator: type[Op]
    fields: Mapping[str, Check]
    required: frozenset[str]
    least_inputs: int
    most_inputs: float


def operator_called(name: str) -> type[Op] | None:
    """The operator of `whet.ir` or `whet.ops` whose class has the name; no other can be loaded."""
    if name not in _known:
        _known.update(_loaded())
    if name not in _known:
        # Only now, for the modules of rare operators would make every start slower.
        _known.update(operators())
    return _known.get(name)


_known: dict[str, type[Op]] = {}


@cache
def operators() -> Mapping[str, type[Op]]:
    """Every operator that there is, by its class's name."""
    for package in (whet.ir, whet.ops):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    return _loaded()


def _loaded() -> dict[str, type[Op]]:
    """The operators of the modules that are imported by now."""
    table: dict[str, type[Op]] = {}
    for operator in _subclasses(Op):
        if operator.__module__.startswith(("whet.ir.", "whet.ops.")) and _is_complete(operator):
            previous = table.setdefault(operator.__name__, operator)
            assert previous is operator, f"two operators are called {operator.__name__}"
    return table


def _subclasses(cls: type[Op]) -> Iterator[type[Op]]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def _is_complete(operator: type[Op]) -> bool:
    """Whether @operator made it, as it does no family's base class, and it is no pattern's leaf."""
    return "__dataclass_params__" in vars(operator) and hasattr(operator, "infer")


@cache
def schema_of(operator: type[Op]) -> Schema:
    """What a file may say of the operator, from its annotations and signatures."""
    hints = get_type_hints(operator, localns=_NAMES, include_extras=True)
    fields = dataclasses.fields(operator)  # type: ignore[arg-type]
    missing = dataclasses.MISSING
    return Schema(
        operator,
        {f.name: check_of(hints[f.name]) for f in fields},
        frozenset(f.name for f in fields if f.default is missing and f.default_factory is missing),
        *_arity(operator),
    )


def _arity(operator: type[Op]) -> tuple[int, float]:
    """How many inputs it takes: what both `infer` and, where there is one, `reference` accept."""
    least, most = 0, float("inf")
    for name in ("infer", "reference"):
        method = getattr(operator, name, None)
        if method is None:
            continue
        # The first is self; some references then take a function that runs inner graphs.
        own = 2 if name == "reference" and operator.runs_graphs else 1
        parameters = list(inspect.signature(method).parameters.values())[own:]
        positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        least = max(least, sum(p.default is p.empty for p in positional))
        if not any(p.kind is p.VAR_POSITIONAL for p in parameters):
            most = min(most, len(positional))
    return least, most


def check_of(hint: Any) -> Check:
    """The check that a value is what an annotation says."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is None:
        return _check_of_class(hint)
    if origin is Union or origin is types.UnionType:
        checks = [check_of(argument) for argument in arguments]
        return lambda x: any(check(x) for check in checks)
    if origin is Annotated:  # a str, of which only these words mean something
        return check_of(arguments[1])
    if origin is Literal:
        return lambda x: any(type(x) is type(a) and x == a for a in arguments)
    if origin is tuple:
        return _check_of_tuple(arguments)
    if origin is np.ndarray:
        return lambda x: isinstance(x, np.ndarray)
    raise TypeError(f"an operator's attribute cannot be annotated {hint}")


def _check_of_class(hint: Any) -> Check:
    if hint is Any:
        return lambda x: True
    if hint is None or hint is type(None):
        return lambda x: x is None
    # As type checkers have it: an int will do for a float, and a bool is an int.
    accepted = (float, int) if hint is float else hint
    if hint is tuple or not isinstance(hint, type):
        raise TypeError(f"an operator's attribute cannot be annotated {hint}: say of what")
    return lambda x: isinstance(x, accepted)


def _check_of_tuple(arguments: tuple[Any, ...]) -> Check:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        check = check_of(arguments[0])
        return lambda x: type(x) is tuple and all(map(check, x))
    checks = [check_of(a) for a in arguments]
    return lambda x: (
        type(x) is tuple
        and len(x) == len(checks)
        and all(check(item) for check, item in zip(checks, x))
    )
