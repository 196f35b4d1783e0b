"""A compiler for tensor programs in one file: whet in miniature, to be read from top to bottom.

    python examples/compiler_from_scratch.py

The way of the data is that of whet: expressions make a *graph*; *rules* rewrite it; what is left
becomes one *kernel*, a loop in which nothing but the result touches memory; LLVM turns the
kernel's text into machine code; and the machine runs it. Each step says which folder of whet does
it for real. It needs numpy and llvmlite.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import llvmlite.binding as llvm
import numpy as np

# --- 1. The graph (whet/ir, whet/ops) --------------------------------------------------------
# A value is an operator and its inputs. It never changes, and equal ones are one object: a
# subexpression written twice is computed once, and "did a rule change anything" is `is`.


@dataclass(frozen=True, eq=False)
class Value:
    """A vector of float32, or a number: the result of an operator on its inputs."""

    op: str
    inputs: tuple[Value, ...] = ()
    data: Any = None  # an input's name, a constant's number

    def __add__(self, other: Value | float) -> Value:
        return make("add", self, as_value(other))

    def __mul__(self, other: Value | float) -> Value:
        return make("multiply", self, as_value(other))

    def __repr__(self) -> str:
        return (
            str(self.data) if not self.inputs else f"{self.op}({', '.join(map(str, self.inputs))})"
        )


_table: dict[Any, Value] = {}


def make(op: str, *inputs: Value, data: Any = None) -> Value:
    """The one Value with this operator, these inputs and this data."""
    key = (op, tuple(map(id, inputs)), repr(data))  # by bits: 0.0 is not -0.0, NaN is itself
    return _table.setdefault(key, Value(op, inputs, data))


def as_value(x: Value | float) -> Value:
    return x if isinstance(x, Value) else make("constant", data=float(x))


def variable(name: str) -> Value:
    return make("input", data=name)


def maximum(a: Value, b: Value | float) -> Value:
    return make("maximum", a, as_value(b))


def total(x: Value) -> Value:
    """The sum of all elements: a reduction ends a kernel."""
    return make("sum", x)


def topological(output: Value) -> Iterator[Value]:
    """Every value that the output needs, each once, after its inputs."""
    seen: set[Value] = set()

    def visit(value: Value) -> Iterator[Value]:
        if value in seen:
            return
        seen.add(value)
        for i in value.inputs:
            yield from visit(i)
        yield value

    yield from visit(output)


# --- 2. The judge (whet/ops: `reference`) ----------------------------------------------------
# What each operator means, in NumPy. Everything else is judged by it.

REFERENCE: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "multiply": np.multiply,
    "maximum": np.maximum,
    "sum": lambda x: np.sum(x, dtype=np.float32),
}


def evaluate(output: Value, arrays: dict[str, np.ndarray]) -> Any:
    """The output, operator by operator: slow and right."""
    results: dict[Value, Any] = {}
    for value in topological(output):
        if value.op == "input":
            results[value] = arrays[value.data]
        elif value.op == "constant":
            results[value] = np.float32(value.data)
        else:
            results[value] = REFERENCE[value.op](*(results[i] for i in value.inputs))
    return results[output]


# --- 3. Rules (whet/passes) ------------------------------------------------------------------
# A rule is a function of a value that gives something simpler and equal, or None.


def is_number(value: Value, number: float) -> bool:
    return value.op == "constant" and value.data == number


def fold_constants(v: Value) -> Value | None:
    """Operators on numbers alone are numbers."""
    if v.inputs and all(i.op == "constant" for i in v.inputs) and v.op != "sum":
        return as_value(float(REFERENCE[v.op](*(np.float32(i.data) for i in v.inputs))))
    return None


def identities(v: Value) -> Value | None:
    """x * 1 is x. So is x + 0, but for -0 + 0, which is 0: that one is left alone."""
    if v.op == "multiply":
        for x, y in (v.inputs, v.inputs[::-1]):
            if is_number(y, 1.0):
                return x
    return None


def relu_twice(v: Value) -> Value | None:
    """max(max(x, a), a) is max(x, a)."""
    if v.op == "maximum" and v.inputs[0].op == "maximum":
        return v.inputs[0] if v.inputs[0].inputs[1] is v.inputs[1] else None
    return None


RULES = [fold_constants, identities, relu_twice]


def optimise(output: Value) -> Value:
    """The output with every rule applied until none fires."""
    new: dict[Value, Value] = {}
    for value in topological(output):
        inputs = tuple(new[i] for i in value.inputs)
        result = make(value.op, *inputs, data=value.data)
        while (simpler := first(rule(result) for rule in RULES)) is not None:
            result = simpler
        new[value] = result
    return new[output]


def first(options: Iterator[Value | None]) -> Value | None:
    return next((option for option in options if option is not None), None)


# --- 4. The kernel and its code (whet/plan, whet/targets/cpu) --------------------------------
# All operators become one loop over the elements. Text of LLVM's language is quick to write; here
# every value is a virtual register, and sixteen elements are computed at a time.

WIDTH = 16
VECTOR = f"<{WIDTH} x float>"
EMIT = {
    "add": f"fadd {VECTOR} {{}}, {{}}",
    "multiply": f"fmul {VECTOR} {{}}, {{}}",
    "maximum": f"call {VECTOR} @llvm.maximum.v{WIDTH}f32({VECTOR} {{}}, {VECTOR} {{}})",
}


def to_llvm(output: Value, names: list[str]) -> str:
    """A function `void kernel(float* inputs..., float* result, i64 count)`; count % 16 is 0."""
    reduces = output.op == "sum"
    body = output.inputs[0] if reduces else output
    register: dict[Value, str] = {}
    lines: list[str] = []
    for number, value in enumerate(topological(body)):
        if value.op == "constant":
            bits = np.float64(np.float32(value.data)).view(np.uint64)
            register[value] = f"splat (float 0x{bits:016X})"
            continue
        register[value] = f"%v{number}"
        if value.op == "input":
            lines.append(f"%p{number} = getelementptr float, ptr %{value.data}, i64 %i")
            lines.append(f"%v{number} = load {VECTOR}, ptr %p{number}, align 4")
        else:
            text = EMIT[value.op].format(*(register[i] for i in value.inputs))
            lines.append(f"%v{number} = {text}")
    if reduces:
        lines.append(f"%next_sum = fadd {VECTOR} %sum, {register[body]}")
    else:
        lines.append("%place = getelementptr float, ptr %result, i64 %i")
        lines.append(f"store {VECTOR} {register[body]}, ptr %place, align 4")
    carried = f"%sum = phi {VECTOR} [zeroinitializer, %entry], [%next_sum, %loop]"
    reduce = (
        f"call reassoc float @llvm.vector.reduce.fadd.v{WIDTH}f32(float 0.0, {VECTOR} %next_sum)"
    )
    last = f"%all = {reduce}\n  store float %all, ptr %result"
    pointers = ", ".join(f"ptr %{name}" for name in (*names, "result"))
    return f"""
declare {VECTOR} @llvm.maximum.v{WIDTH}f32({VECTOR}, {VECTOR})
declare float @llvm.vector.reduce.fadd.v{WIDTH}f32(float, {VECTOR})
define void @kernel({pointers}, i64 %count) {{
entry:
  br label %loop
loop:
  %i = phi i64 [0, %entry], [%next, %loop]
  {carried if reduces else ""}
  {chr(10).join(lines)}
  %next = add i64 %i, {WIDTH}
  %more = icmp slt i64 %next, %count
  br i1 %more, label %loop, label %done
done:
  {last if reduces else ""}
  ret void
}}
"""


# --- 5. Machine code, and a call into it (whet/targets/cpu/jit.py, whet/runtime) -------------


class Session:
    """A compiled output. Keep it for as long as its code may run."""

    def __init__(self, output: Value) -> None:
        inputs = [value for value in topological(output) if value.op == "input"]
        self.names = [value.data for value in inputs]
        self.reduces = output.op == "sum"
        self.text = to_llvm(output, self.names)
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
        )
        self.engine = llvm.create_mcjit_compiler(llvm.parse_assembly(self.text), machine)
        self.engine.finalize_object()
        kinds = [ctypes.c_void_p] * (len(self.names) + 1) + [ctypes.c_int64]
        self.call = ctypes.CFUNCTYPE(None, *kinds)(self.engine.get_function_address("kernel"))

    def run(self, arrays: dict[str, np.ndarray]) -> np.ndarray:
        """The output for float32 vectors of one length, a multiple of 16."""
        given = [np.ascontiguousarray(arrays[name], np.float32) for name in self.names]
        (count,) = {len(x) for x in given}
        if count % WIDTH or not count:
            raise ValueError(f"vectors of {count} elements; a multiple of {WIDTH} is needed")
        result = np.empty((), np.float32) if self.reduces else np.empty(count, np.float32)
        self.call(*(x.ctypes.data for x in given), result.ctypes.data, count)
        return result


def main() -> None:
    x, y = variable("x"), variable("y")
    relu = maximum(maximum(x * 1.0 + y * (as_value(2.0) * 0.25), 0.0), 0.0)
    output = total(relu * relu)
    print("the graph     ", output)
    print("after rules   ", optimised := optimise(output))
    session = Session(optimised)

    rng = np.random.default_rng()
    arrays = {name: rng.standard_normal(1 << 20, np.float32) for name in "xy"}
    expected, found = evaluate(output, arrays), session.run(arrays)
    print("NumPy, LLVM   ", expected, found)
    assert np.isclose(found, expected, rtol=1e-4)
    for name, work in (
        ("NumPy", lambda: evaluate(output, arrays)),
        ("LLVM", lambda: session.run(arrays)),
    ):
        taken = []
        for _ in range(20):
            start = time.perf_counter()
            work()
            taken.append(time.perf_counter() - start)
        print(f"{name:14} {1e3 * min(taken):.2f} ms for a million elements")


if __name__ == "__main__":
    main()
