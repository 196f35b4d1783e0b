"""A text emitter of LLVM IR: a Module of Functions, whose values are names of SSA registers.

Text is eight times faster to make than a tree of llvmlite.ir objects, and needs nothing installed.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache

import ml_dtypes
import numpy as np

Index = int | str
"""An i64: known when the code is made, or the name of a register."""

ELEMENT_BYTES = {"float": 4, "double": 8, "half": 2, "bfloat": 2, "ptr": 8}
SUFFIX = {"float": "f32", "double": "f64", "half": "f16", "bfloat": "bf16", "ptr": "p0"}
FLOATS = ("float", "double", "half", "bfloat")
VECTOR = re.compile(r"<(\d+) x (.+)>")


def vector(element: str, lanes: int) -> str:
    """The type of `lanes` elements; one lane is the scalar type itself."""
    return element if lanes == 1 else f"<{lanes} x {element}>"


@lru_cache(maxsize=256)
def split_type(type: str) -> tuple[str, int]:
    """The element type and the number of lanes (1 for a scalar)."""
    match = VECTOR.fullmatch(type)
    return (match[2], int(match[1])) if match else (type, 1)


def element_bytes(type: str) -> int:
    """Bytes of one element in memory; an i1 is kept in a byte."""
    element = split_type(type)[0]
    return ELEMENT_BYTES.get(element) or -(-int(element[1:]) // 8)


def suffix(type: str) -> str:
    """The mangled type in the name of an overloaded intrinsic: v16f32."""
    element, lanes = split_type(type)
    return (f"v{lanes}" if lanes > 1 else "") + SUFFIX.get(element, element)


def is_float(type: str) -> bool:
    return split_type(type)[0] in FLOATS


def literal(type: str, value: float | int | bool) -> str:
    """A constant of the type, the same in every lane; floats keep their exact bits."""
    element, lanes = split_type(type)
    text = _float_literal(element, float(value)) if element in FLOATS else str(int(value))
    return text if lanes == 1 else f"splat ({element} {text})"


def _float_literal(element: str, value: float) -> str:
    with np.errstate(over="ignore"):
        if element == "half":
            return f"0xH{np.float16(value).view(np.uint16):04X}"
        if element == "bfloat":
            return f"0xR{np.array(value, ml_dtypes.bfloat16).view(np.uint16):04X}"
        if element == "float":  # LLVM writes a float as the double of equal value
            value = float(np.float32(value))
    return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"


def array_literal(type: str, values: Sequence[float | int | bool]) -> str:
    """A constant vector with one value per lane."""
    element = split_type(type)[0]
    return "<" + ", ".join(f"{element} {literal(element, v)}" for v in values) + ">"


class Module:
    """Functions, constants and the declarations they need: `text()` is a whole LLVM module."""

    def __init__(self, vector_bits: int = 0) -> None:
        self.vector_bits = vector_bits
        self.functions: dict[str, Function] = {}
        self.constants: dict[str, str] = {}
        self.declarations: dict[str, str] = {}

    def function(
        self,
        name: str,
        parameters: dict[str, str],
        returns: str = "void",
        linkage: str = "",
        attributes: str = "",
    ) -> Function:
        """A new function; `parameters` maps a name to a type and its attributes ("ptr noalias")."""
        if name in self.functions:
            raise ValueError(f"the module already has a function called {name}")
        self.functions[name] = Function(self, name, parameters, returns, linkage, attributes)
        return self.functions[name]

    def declare(self, name: str, returns: str, arguments: Sequence[str]) -> None:
        """Makes an external function or an intrinsic known."""
        self.declarations[name] = f"declare {returns} @{name}({', '.join(arguments)})"

    def constant(self, name: str, type: str, initializer: str, align: int = 64) -> str:
        """A read-only array in the module; its address."""
        self.constants[name] = (
            f"@{name} = internal unnamed_addr constant {type} {initializer}, align {align}"
        )
        return f"@{name}"

    def text(self) -> str:
        """The module as LLVM assembly."""
        outside = [t for name, t in self.declarations.items() if name not in self.functions]
        bodies = [f.text() for f in self.functions.values()]
        return "\n".join([*sorted(outside), *self.constants.values(), *bodies, self._attributes()])

    def _attributes(self) -> str:
        width = f'"{{}}-vector-width"="{self.vector_bits}"'
        widths = [width.format(w) for w in ("prefer", "min-legal")] if self.vector_bits else []
        return " ".join(["attributes #0 = { nounwind", *widths, "}\n"])


class Function:
    """One function under construction: methods append an instruction and return its register.

    Types are LLVM's spelling, values are names or literals, offsets are in bytes.
    """

    def __init__(
        self,
        module: Module,
        name: str,
        parameters: dict[str, str],
        returns: str = "void",
        linkage: str = "",
        attributes: str = "",
    ) -> None:
        self.module, self.name, self.returns = module, name, returns
        self.parameters = [f"%{p}" for p in parameters]
        signature = ", ".join(f"{type} %{p}" for p, type in parameters.items())
        head = " ".join(
            filter(None, ["define", linkage, returns, f"@{name}({signature})", attributes])
        )
        self.lines = [head + " #0 {", "entry:"]
        self.block = "entry"
        self._count = 0
        self._closed = False

    def text(self) -> str:
        """The function as LLVM assembly, complete once `end` was called."""
        if not self._closed:
            raise ValueError(f"the function {self.name} has no end")
        return "\n".join(self.lines)

    def op(self, text: str) -> str:
        """An instruction with a result, written out."""
        self._count += 1
        self.lines.append(f" %v{self._count} = {text}")
        return f"%v{self._count}"

    def do(self, text: str) -> None:
        """An instruction without a result, written out."""
        self.lines.append(" " + text)

    def comment(self, text: str) -> None:
        """A remark in the text of the function."""
        self.lines.append(f" ; {text}")

    # Integers that address things: folded where both sides are known.

    def add(self, a: Index, b: Index) -> Index:
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        return b if a == 0 else a if b == 0 else self.op(f"add i64 {a}, {b}")

    def sub(self, a: Index, b: Index) -> Index:
        if isinstance(a, int) and isinstance(b, int):
            return a - b
        return a if b == 0 else self.op(f"sub i64 {a}, {b}")

    def mul(self, a: Index, b: Index) -> Index:
        if isinstance(a, int) and isinstance(b, int):
            return a * b
        if a == 0 or b == 0:
            return 0
        return b if a == 1 else a if b == 1 else self.op(f"mul i64 {a}, {b}")

    def div(self, a: Index, b: Index) -> Index:
        """a // b of numbers that are not negative."""
        if isinstance(a, int) and isinstance(b, int):
            return a // b
        return a if b == 1 else self.op(f"udiv i64 {a}, {b}")

    def rem(self, a: Index, b: Index) -> Index:
        """a % b of numbers that are not negative."""
        if isinstance(a, int) and isinstance(b, int):
            return a % b
        return 0 if b == 1 else self.op(f"urem i64 {a}, {b}")

    def min(self, a: Index, b: Index) -> Index:
        if isinstance(a, int) and isinstance(b, int):
            return min(a, b)
        return self.intrinsic("llvm.smin", "i64", str(a), str(b))

    def max(self, a: Index, b: Index) -> Index:
        if isinstance(a, int) and isinstance(b, int):
            return max(a, b)
        return self.intrinsic("llvm.smax", "i64", str(a), str(b))

    # Memory.

    def address(self, base: str, offset: Index = 0) -> str:
        """base + offset bytes."""
        return base if offset == 0 else self.op(f"getelementptr i8, ptr {base}, i64 {offset}")

    def ahead(self, place: tuple[str, int], steps: int, step: Index) -> tuple[str, int]:
        """(address, known offset) some steps of so many bytes further on."""
        base, offset = place
        if isinstance(step, int):
            return base, offset + steps * step
        return self.address(base, self.mul(steps, step)), offset

    def load(self, type: str, base: str, offset: Index = 0, align: int = 0) -> str:
        """A value at base + offset; aligned to one element unless told more."""
        at = self.address(base, offset)
        return self.op(f"load {type}, ptr {at}, align {align or element_bytes(type)}")

    def store(self, type: str, value: str, base: str, offset: Index = 0, align: int = 0) -> None:
        at = self.address(base, offset)
        self.do(f"store {type} {value}, ptr {at}, align {align or element_bytes(type)}")

    def masked_load(self, type: str, mask: str, base: str, offset: Index = 0) -> str:
        """The lanes that the <n x i1> mask names; zeros elsewhere, whose memory is not touched."""
        return self.call(
            type,
            f"llvm.masked.load.{suffix(type)}.p0",
            [
                (f"ptr align {element_bytes(type)}", self.address(base, offset)),
                (mask_type(type), mask),
                (type, "zeroinitializer"),
            ],
        )

    def masked_store(self, type: str, value: str, mask: str, base: str, offset: Index = 0) -> None:
        self.call(
            "void",
            f"llvm.masked.store.{suffix(type)}.p0",
            [
                (type, value),
                (f"ptr align {element_bytes(type)}", self.address(base, offset)),
                (mask_type(type), mask),
            ],
        )

    def prefetch(self, base: str, offset: Index = 0, locality: int = 3) -> None:
        """Asks for the cache line at base + offset: locality 3 into L1, 2 into L2."""
        at = self.address(base, offset)
        hints = [("i32", "0"), ("i32", str(locality)), ("i32", "1")]
        self.call("void", "llvm.prefetch.p0", [("ptr", at), *hints])

    def alloca(self, bytes: int, align: int = 64) -> str:
        """Scratch memory on the stack; ask for it outside loops."""
        return self.op(f"alloca [{bytes} x i8], align {align}")

    def fence(self) -> None:
        """Keeps the compiler from moving loads across: bounds the lives of registers."""
        self.do('call void asm sideeffect "", "~{memory}"()')

    # Values.

    def binary(self, operation: str, type: str, a: str, b: str) -> str:
        """`operation` is LLVM's: fadd, sub, xor, shl, fdiv fast …"""
        return self.op(f"{operation} {type} {a}, {b}")

    def compare(self, predicate: str, type: str, a: str, b: str) -> str:
        """An i1 per lane; `predicate` is LLVM's: slt, ult … for integers, olt, une … for floats."""
        return self.op(f"{'fcmp' if is_float(type) else 'icmp'} {predicate} {type} {a}, {b}")

    def select(self, condition: str, type: str, a: str, b: str, by_lane: bool = True) -> str:
        """a where the condition holds, else b; the condition is an i1 per lane, or one for all."""
        kind = mask_type(type) if by_lane else "i1"
        return self.op(f"select {kind} {condition}, {type} {a}, {type} {b}")

    def convert(self, operation: str, value: str, source: str, target: str) -> str:
        """`operation` is LLVM's: fpext, fptrunc, sitofp, zext, bitcast …"""
        return self.op(f"{operation} {source} {value} to {target}")

    def splat(self, type: str, scalar: str) -> str:
        """The scalar in every lane."""
        element, lanes = split_type(type)
        if lanes == 1:
            return scalar
        one = self.op(f"insertelement {type} poison, {element} {scalar}, i32 0")
        return self.op(
            f"shufflevector {type} {one}, {type} poison, <{lanes} x i32> zeroinitializer"
        )

    def extract(self, type: str, value: str, lane: int) -> str:
        return (
            value
            if split_type(type)[1] == 1
            else self.op(f"extractelement {type} {value}, i32 {lane}")
        )

    def insert(self, type: str, value: str, scalar: str, lane: int) -> str:
        return self.op(f"insertelement {type} {value}, {split_type(type)[0]} {scalar}, i32 {lane}")

    def shuffle(self, type: str, a: str, b: str, lanes: Sequence[int]) -> str:
        """Lanes of a (0 …) and b (after a's); -1 leaves a lane undefined."""
        order = ", ".join("i32 poison" if lane < 0 else f"i32 {lane}" for lane in lanes)
        return self.op(f"shufflevector {type} {a}, {type} {b}, <{len(lanes)} x i32> <{order}>")

    def fma(self, type: str, a: str, b: str, c: str) -> str:
        """a * b + c: one instruction where the processor has it, else a product and a sum."""
        return self.intrinsic("llvm.fmuladd", type, a, b, c)

    def call(self, returns: str, name: str, arguments: Sequence[tuple[str, str | int]]) -> str:
        """A call of (type, value) arguments; functions from outside the module are declared."""
        if name not in self.module.functions:
            self.module.declare(name, returns, [type for type, _ in arguments])
        call = f"call {returns} @{name}({', '.join(f'{t} {v}' for t, v in arguments)})"
        if returns == "void":
            self.do(call)
            return ""
        return self.op(call)

    def intrinsic(self, name: str, type: str, *values: str) -> str:
        """A call of an intrinsic that is overloaded by the one type of its arguments and result."""
        return self.call(type, f"{name}.{suffix(type)}", [(type, v) for v in values])

    def extreme(self, kind: str, type: str, fresh: str, before: str) -> str:
        """The larger ("max") or smaller of two floats, NaN where either is; zeros of both signs are
        alike, which halves the instructions. `before` is the one that was computed last."""
        name = f"llvm.{kind}imum.{suffix(type)}"
        self.module.declare(name, type, [type, type])
        return self.op(f"call nsz {type} @{name}({type} {fresh}, {type} {before})")

    # Control flow.

    def label(self, name: str) -> None:
        """Begins a basic block."""
        self.lines.append(name + ":")
        self.block = name

    def new_label(self, stem: str) -> str:
        self._count += 1
        return f"{stem}{self._count}"

    def branch(self, condition: str, then: str, otherwise: str) -> None:
        self.do(f"br i1 {condition}, label %{then}, label %{otherwise}")

    def loop(
        self,
        low: Index,
        high: Index,
        step: int,
        body: Callable[[str, list[str]], Sequence[str] | None],
        carried: Sequence[tuple[str, str]] = (),
        guard: bool | None = None,
    ) -> list[str]:
        """for i in range(low, high, step), with values carried from one turn to the next.

        `body(i, values)` returns the next values; `carried` gives (type, first value). Unguarded it
        runs at least once; by default it is guarded where the bounds don't say that it does.
        """
        if guard is None:
            guard = not (isinstance(low, int) and isinstance(high, int) and low < high)
        tag = self.new_label("loop")
        before, i, done = self.block, f"%{tag}i", f"{tag}end"
        names = [f"%{tag}c{j}" for j in range(len(carried))]
        if guard:
            self.branch(self.op(f"icmp slt i64 {low}, {high}"), tag, done)
        else:
            self.do(f"br label %{tag}")
        self.label(tag)
        slot = len(self.lines)
        values = list(body(i, names) or ())
        following = self.op(f"add nsw i64 {i}, {step}")
        self.branch(self.op(f"icmp slt i64 {following}, {high}"), tag, done)
        last = self.block
        merges = [f" {i} = phi i64 [ {low}, %{before} ], [ {following}, %{last} ]"]
        merges += [
            f" {name} = phi {type} [ {first}, %{before} ], [ {value}, %{last} ]"
            for name, (type, first), value in zip(names, carried, values, strict=True)
        ]
        self.lines[slot:slot] = merges
        self.label(done)
        if not guard:
            return values
        return [
            self.op(f"phi {type} [ {first}, %{before} ], [ {value}, %{last} ]")
            for (type, first), value in zip(carried, values)
        ]

    def when(
        self,
        condition: str,
        then: Callable[[], Sequence[str] | None],
        otherwise: Callable[[], Sequence[str] | None] = lambda: None,
        types: Sequence[str] = (),
    ) -> list[str]:
        """if / else; both sides return values of `types`, and the one taken is returned."""
        tag = self.new_label("if")
        sides: list[tuple[str, list[str]]] = []
        self.branch(condition, tag + "then", tag + "else")
        for name, body in (("then", then), ("else", otherwise)):
            self.label(tag + name)
            values = list(body() or ())
            self.do(f"br label %{tag}end")
            sides.append((self.block, values))
        self.label(tag + "end")
        (a, ours), (b, theirs) = sides
        return [
            self.op(f"phi {type} [ {x}, %{a} ], [ {y}, %{b} ]")
            for type, x, y in zip(types, ours, theirs, strict=True)
        ]

    def end(self, value: str = "") -> None:
        """Returns from the function and closes it."""
        self.do(f"ret {self.returns} {value}".rstrip())
        self.lines.append("}")
        self._closed = True


def mask_type(type: str) -> str:
    """The type of one i1 per lane."""
    return vector("i1", split_type(type)[1])
