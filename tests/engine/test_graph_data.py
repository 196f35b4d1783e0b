"""Graphs as plain data: what comes back is what went in, and nonsense is refused."""

import copy
import dataclasses
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine import graphs as random_graphs
from tests.ops.cases import CASES
from whet.engine import schema
from whet.engine.decode import decode
from whet.engine.encode import encode
from whet.engine.schema import check_of, operators, schema_of
from whet.engine.size_table import MOST_PARTS
from whet.errors import InvalidEngine
from whet.ir.graph import (
    Graph,
    Input,
    Op,
    Parameter,
    Token,
    Value,
    Weight,
    constant,
    make,
    operator,
)
from whet.ir.sizes import symbol
from whet.ir.types import NUMPY_DTYPES, OptionalType, SequenceType, TensorType, UnrankedType
from whet.ops.elementwise import Add, Cast, Exp, Neg
from whet.ops.movement import Reshape, Sizes

ROOT = str(Path(__file__).parents[2])


def text(graph: Graph) -> tuple[str, bytes]:
    plain, constants = encode(graph)
    return json.dumps(plain), constants


def reload(graph: Graph) -> Graph:
    plain, constants = text(graph)
    return decode(json.loads(plain), constants)


def over(*outputs: Value, inputs: tuple[Value, ...] = ()) -> Graph:
    return Graph(inputs, outputs, tuple(f"y{i}" for i in range(len(outputs))))


def f32(name: str, *shape) -> Value:
    return make(Input(name, TensorType("float32", shape)), ())[0]


def bits(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size)


@settings(deadline=None)
@given(random_graphs.graphs())
def test_round_trip(graph):
    again = reload(graph)
    assert again.inputs == graph.inputs and again.outputs == graph.outputs
    assert again.output_names == graph.output_names
    assert again.guards[: len(graph.guards)] == graph.guards
    needed = set(encode_values(graph))
    assert again.origins == {
        v: names for v, names in graph.origins.items() if names and v in needed
    }
    assert text(again) == text(reload(again))


def encode_values(graph: Graph) -> list[Value]:
    outputs = Graph(graph.inputs, (*graph.inputs, *graph.outputs)).values
    return [sibling for v in outputs for sibling in v.siblings]


@pytest.mark.parametrize("dtype", [d for d in NUMPY_DTYPES if d != "string"])
@pytest.mark.parametrize("count", [0, 1, 7, 1000])
def test_constants_keep_their_bits(dtype, count):
    rng = np.random.default_rng([count, *dtype.encode()])
    array = rng.integers(0, 2, count).astype(NUMPY_DTYPES[dtype])
    if dtype not in ("bool", "int2", "uint2", "int4", "uint4", "float4_e2m1fn"):
        array = rng.bytes(array.nbytes)
        array = np.frombuffer(array, NUMPY_DTYPES[dtype])
    value = constant(array.reshape(count, 1))
    (again,) = reload(over(value)).outputs
    assert again is value


def test_strings_keep_what_is_not_unicode():
    array = np.array([["a\0b", "", "κ"], ["\udcff", "1", "x" * 999]], object)
    (again,) = reload(over(constant(array))).outputs
    assert again.op.data.tolist() == array.tolist() and again.type == TensorType("string", (2, 3))


@operator
class Holder(Op):
    """An attribute of any kind, for these tests."""

    held: Any
    type: TensorType = TensorType("float32", ())

    def infer(self, *inputs):
        return self.type, self.type

    def reference(self, *arrays):
        return arrays


@pytest.fixture
def holder(monkeypatch):
    monkeypatch.setitem(schema._known, "Holder", Holder)


ATTRIBUTES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(width=64)
    | st.text()
    | st.binary()
    | random_graphs.sizes()
    | st.sampled_from(
        [-0.0, float("nan"), TensorType("int4", (symbol("n"), 3)), Add(), Reshape((2,))]
    )
    | st.sampled_from([SequenceType(UnrankedType("bool")), OptionalType(TensorType("string", ()))]),
    lambda inner: st.lists(inner).map(tuple),
)


@settings(deadline=None)
@given(ATTRIBUTES)
def test_attributes_keep_type_and_bits(held):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(schema._known, "Holder", Holder)
        (again,) = reload(over(make(Holder(held), ())[0])).outputs
    assert again.op == Holder(held)


def inner(shift: float) -> Graph:
    parameter = make(Parameter(Token(), TensorType("float32", ()), "p"), ())[0]
    return Graph((parameter,), (parameter + shift,))


def test_inner_graphs_and_several_results(holder):
    body = inner(1.0)
    outer = make(Holder((body, body, inner(2.0))), ())
    deeper = make(Holder(Graph((), (make(Holder(body), (None,))[1],))), (outer[1], None, outer[0]))
    graph = over(deeper[1], outer[0])
    plain, _ = encode(graph)
    assert len(plain["graphs"]) == 4, "an inner graph that is used twice is stored once"
    (first, second), again = reload(graph).outputs, reload(reload(graph))
    assert first.index == 1 and first.inputs[1] is None and first.inputs[2] is second
    a, b, c = second.op.held
    assert a is b and a.inputs[0] is not c.inputs[0] and a.inputs[0] is not body.inputs[0]
    assert text(again) == text(graph)


def test_tokens_are_numbered_from_the_start(holder):
    first = text(over(make(Holder(inner(1.0)), ())[0]))
    assert text(over(make(Holder(inner(1.0)), ())[0])) == first


def test_a_guard_that_the_file_lacks_is_found():
    a, b = f32("a", symbol("n")), f32("b", symbol("m"))
    graph = Graph((a, b), (a + b,), ("y",), origins={a + b: ("the sum",)})
    (guard,) = reload(graph).guards
    assert (guard.left, guard.right, guard.node) == (symbol("n"), symbol("m"), "the sum")


PROGRAM = """
import json, random
from tests.engine.graphs import networks
from whet.engine.encode import encode
from whet.ir.graph import Token
[Token() for _ in range({tokens})]
plain, constants = encode(networks(random.Random(7), 5))
print(json.dumps(plain), constants.hex())
"""


def test_same_data_in_every_process():
    def run(seed: int) -> bytes:
        return subprocess.run(
            [sys.executable, "-c", PROGRAM.format(tokens=seed)],
            env={**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": ROOT},
            capture_output=True,
            check=True,
        ).stdout

    assert run(1) == run(2)


def test_every_operator_can_be_stored():
    """Each attribute has an annotation that can be checked; base classes are left out."""
    table = {name: schema_of(operator) for name, operator in operators().items()}
    assert {"MatMul", "Convolution", "Weight", "Constant", "Reshape"} <= set(table)
    assert not {"Op", "Unary", "Anything"} & set(table)
    assert table["Neg"].most_inputs == 1 and table["LayerNorm"].least_inputs == 2
    assert table["If"].least_inputs == 1, "the function that runs its branches is no input"


@pytest.mark.parametrize(
    "hint, good, bad",
    [
        (int, [0, -3, True], [1.0, "1", None]),
        (float, [0.5, 1], ["a", None]),
        (str | None, ["", None], [0, b""]),
        (tuple[int, ...], [(), (1, 2)], [[1], (1, "2"), 1]),
        (tuple[str, float], [("a", 1.0)], [("a",), (1.0, "a")]),
        (np.ndarray, [np.zeros(2)], [[0]]),
    ],
)
def test_attributes_are_checked_against_their_annotations(hint, good, bad):
    check = check_of(hint)
    assert all(map(check, good)) and not any(map(check, bad))


def test_annotations_that_say_too_little_are_refused():
    for hint in (tuple, dict[str, int], list[int]):
        with pytest.raises(TypeError, match="annotated"):
            check_of(hint)


def sample() -> tuple[dict, bytes]:
    """Plain data with one of everything that the tests below damage."""
    n = symbol("n", 1)
    x = f32("x", n, 4)
    y = (
        Reshape((n * 2, 2))(x + constant(np.ones(4, "float32")))
        + make(Weight("w", TensorType("float32", (2,))), ())[0]
    )
    graph = Graph((x,), (y, Sizes((n // 3,))()), ("y", "s"), (), {y: ("here",)})
    plain, constants = encode(graph)
    return json.loads(json.dumps(plain)), constants


def broken(path: list, value) -> pytest.ExceptionInfo:
    plain, constants = sample()
    place = plain
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(InvalidEngine) as caught:
        decode(plain, constants)
    return caught


def find(kind: str) -> tuple[dict, int]:
    """The place of the first operator of a class in the sample."""
    plain, _ = sample()
    number = [row[0] for row in plain["operators"]].index(kind)
    return number, [op[0] for op in plain["graphs"][0]["ops"]].index(number)


@pytest.mark.parametrize(
    "path, value, message",
    [
        (["graphs"], [], "no graph"),
        (["graphs"], {}, "must be a list"),
        (["graphs", 0, "outputs"], [99], "value 99 does not exist"),
        (["graphs", 0, "outputs"], [-1], "value -1 does not exist"),
        (["graphs", 0, "outputs"], [True], "does not exist"),
        (["graphs", 0, "inputs"], [], "neither is an input nor comes from one"),
        (["graphs", 0, "names"], ["y"], "without a name"),
        (["graphs", 0, "nodes", 0], [10**9], "operator 1000000000 does not exist"),
        (["graphs", 0, "nodes", 1], [1, 1], "cannot take|does not exist"),
        (["graphs", 0, "nodes", 0], "x", "is no node"),
        (["graphs", 0, "guards"], [[0, 1, "a", 1]], "guard"),
        (["graphs", 0, "guards"], [[0, {"s": 77}, "a", True]], "size 77 does not exist"),
        (["graphs", 0, "origins"], [[["a"], [10**7]]], "does not exist"),
        (["operators", 0, 0], "__import__", "no operator called"),
        (["operators", 0, 0], "Anything", "no operator called"),
        (["operators", 0, 1], "nam", "no attribute nam"),
        (["sizes", 0], ["symbol", "n", 0.5, None], "least value"),
        (["sizes", 0], ["symbol", 1, 0, None], "name must be text"),
        (["sizes", 0], ["//", {"s": 0}, 2], "does not exist"),
        (["sizes", 0], ["**", 2, 10**9], "is no size"),
        (["sizes", 0], ["//", 4, 0], "known sizes only"),
        (["sizes", 0], [], "is no size"),
        (["sizes", 0], ["+", [1, 0]], "does not exist"),
        (["sizes", 0], ["+", []], "factor"),
    ],
)
def test_damage_is_named(path, value, message):
    assert broken(path, value).match(message)


@pytest.mark.parametrize(
    "shape, message",
    [
        ([-1, 4], "no tensor can be"),
        ([2**40, 2**40], "no tensor can be"),
        ([2**70, 4], "must be an integer"),
        ([1] * 65, "no tensor can be"),
        ([1.5], "must be|is needed"),
        ([{"f": "00"}], "is needed"),
        ("4", "must be a list"),
    ],
)
def test_impossible_shapes_are_refused(shape, message):
    number, place = find("Input")
    assert broken(["graphs", 0, "ops", place], [number, "x", {"t": ["float32", shape]}]).match(
        message
    )


@pytest.mark.parametrize(
    "array, message",
    [
        (["float32", [3], "00"], "12 bytes has 1"),
        (["float32", [2**57], 0], "bytes has"),
        (["float32", [1], "zz000000"], "not hexadecimal"),
        (["float32", [1], 10**12], "offset in the constants"),
        (["float32", [1], -4], "offset in the constants"),
        (["float33", [1], ""], "no dtype"),
        (["bool", [2], "0102"], "neither 0 nor 1"),
        (["string", [2], ["a"]], "lacks elements"),
        (["string", [1], [None]], "is no string"),
        (["object", [1], ""], "no dtype"),
    ],
)
def test_impossible_arrays_are_refused(array, message):
    number, place = find("Constant")
    assert broken(["graphs", 0, "ops", place], [number, {"a": array}]).match(message)


def test_unknown_dtypes_of_results_are_refused():
    x = f32("x", 2)
    plain, constants = encode(Graph((x,), (Cast("float16")(x),), ("y",)))
    text = json.dumps(plain).replace('"float16"', '"float17"')
    with pytest.raises(InvalidEngine, match="no dtype 'float17'"):
        decode(json.loads(text), constants)


FREE = {("Input", "name"), ("RegexFullMatch", "pattern"), ("StringSplit", "delimiter")}
"""Attributes that are any text."""


def words(cases):
    """An operator of each class of the operators' table with each attribute that is a word."""
    found = {}
    for case in cases:
        for value in case.graph().values:
            for field in dataclasses.fields(value.op):
                place = type(value.op).__name__, field.name
                if "str" in str(field.type) and place not in FREE:
                    found.setdefault(place, (value, field.name))
    return [pytest.param(*pair, id=".".join(place)) for place, pair in found.items()]


@pytest.mark.parametrize("value, name", words(CASES))
def test_words_that_mean_nothing_are_refused(value, name):
    inputs = [v for v in Graph((), (value,)).values if isinstance(v.op, Input)]
    plain, constants = encode(Graph(tuple(inputs), (value,), ("y",)))
    number = [row[0] for row in plain["operators"]].index(type(value.op).__name__)
    column = plain["operators"][number][1:].index(name) + 1
    for op in plain["graphs"][-1]["ops"]:
        if op[0] == number:
            op[column] = "perhaps"
    with pytest.raises(InvalidEngine):
        decode(json.loads(json.dumps(plain)), constants)


@pytest.mark.parametrize("steps, why", [(10, f"more than {MOST_PARTS} parts"), (60, "nests")])
def test_a_size_that_doubles_at_each_step_is_refused(steps, why):
    plain, constants = sample()
    base = len(plain["sizes"])
    last = base + steps - 1
    plain["sizes"] += [["min", *[{"s": base + i - 1}] * 2] for i in range(steps)]
    plain["sizes"].append(["+", *([1, *[last] * power] for power in range(1, 20))])
    with pytest.raises(InvalidEngine, match=why):
        decode(plain, constants)


def test_deep_nesting_is_refused():
    number, place = find("Input")
    kind: object = {"t": ["float32", []]}
    for _ in range(5000):
        kind = {"q": kind}
    assert broken(["graphs", 0, "ops", place], [number, "x", kind]).match("too deep")


@settings(deadline=None, max_examples=300)
@given(st.randoms(use_true_random=False))
def test_random_damage_is_refused_or_harmless(rng):
    """Whatever is changed, the only error is InvalidEngine."""
    plain, constants = sample()
    for _ in range(rng.randrange(1, 4)):
        mutate(plain, rng)
    try:
        graph = decode(plain, constants)
    except InvalidEngine:
        return
    assert text(graph)


NONSENSE = [
    None,
    True,
    -1,
    0,
    1,
    2**63,
    1.5,
    "",
    "x",
    [],
    {},
    [0],
    {"s": 0},
    {"f": "0" * 16},
    {"g": 0},
]


def mutate(plain, rng: random.Random) -> None:
    """Replaces, removes or doubles something at a random place."""
    keys = list(plain) if isinstance(plain, dict) else list(range(len(plain)))
    if not keys:
        return
    key = rng.choice(keys)
    if isinstance(plain[key], list | dict) and plain[key] and rng.random() < 0.8:
        mutate(plain[key], rng)
    elif rng.random() < 0.7:
        plain[key] = copy.deepcopy(rng.choice(NONSENSE))
    elif isinstance(plain, list):
        plain.insert(key, copy.deepcopy(rng.choice(plain)))
    else:
        del plain[key]


def test_schema_of_an_operator_with_odd_inputs():
    assert schema_of(Exp).most_inputs == 1 and schema_of(Neg).least_inputs == 1
