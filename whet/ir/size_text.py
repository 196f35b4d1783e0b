"""Sizes from the text that `str` makes of them."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from typing import Any

from whet.ir.atoms import Undecided
from whet.ir.sizes import FUNCTIONS, Size, floor_divide, modulo, symbol


def parse(text: str, lows: Mapping[str, int] | None = None) -> Size:
    """The size that `str` printed; raises ValueError on anything else."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # a null byte: either
        raise ValueError(f"{text!r} is not a size: {error}") from None
    try:
        return _parse(tree.body, text, lows or {})
    except (ZeroDivisionError, RecursionError, Undecided) as error:
        raise ValueError(f"{text!r} is not a size: {error}") from None


_BINARY: dict[type[ast.operator], Callable[[Any, Any], Size]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: floor_divide,
    ast.Mod: modulo,
}


def _parse(node: ast.expr, text: str, lows: Mapping[str, int]) -> Size:
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return value
        case ast.Constant(value=str(name)) | ast.Name(id=name):
            return symbol(name, lows.get(name, 0))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_parse(operand, text, lows)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_parse(left, text, lows), _parse(right, text, lows))
        case ast.Call(func=ast.Name(id=("min" | "max") as name), args=[_, *_] as args, keywords=[]):
            return FUNCTIONS[name](*(_parse(arg, text, lows) for arg in args))
    raise ValueError(f"{text!r} is not a size")
