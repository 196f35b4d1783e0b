"""Inputs and outputs that pass through the arena of a device: nothing that is alive is overwritten,
whatever the order of steps that do not need each other."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

import whet
from tests.runtime.models import convolutions
from whet.ir.graph import Graph, Input, Value, make
from whet.ir.sizes import Expr, symbol
from whet.ir.types import TensorType
from whet.ops.movement import Concat, slice_axis
from whet.ops.reduce import Cumulative, Softmax
from whet.plan.legalize import legal
from whet.plan.memory import GUEST_ALIGNMENT, lodge
from whet.plan.plan import Plan, make_plan, nbytes
from whet.plan.stored import pack, unpack
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.device import Device

GPU = Device(Architecture.parse("sm90"))
COLUMNS = 48


def given(name: str, rows: int) -> Value:
    return make(Input(name, TensorType("float32", (rows, COLUMNS))), ())[0]


def drawn(rng: np.random.Generator) -> Graph:
    """A graph of branches that part and meet, in which some outputs are read on."""
    inputs = tuple(given(f"x{n}", int(rng.integers(1, 40))) for n in range(rng.integers(1, 4)))
    values = list(inputs)
    for _ in range(int(rng.integers(6, 20))):
        near = values[-6:]
        x, y = (near[int(rng.integers(len(near)))] for _ in range(2))
        kind = rng.integers(4)
        if kind == 0:
            x = Concat(0)(x, y)
        elif kind == 1 and x.shape[0] > 1:
            x = slice_axis(x, 0, 0, int(x.shape[0]) // 2)
        values.append(Softmax()(x) if kind % 2 else Cumulative("sum", 1)(x))
    made = values[len(inputs) :]
    ends = {made[-1], *(made[int(n)] for n in rng.integers(len(made), size=rng.integers(3)))}
    outputs = tuple(v for v in values if v in ends)
    return Graph(inputs, outputs, tuple(f"y{n}" for n in range(len(outputs))))


def planned(graph: Graph) -> Plan:
    return make_plan(legal(graph, GPU), GPU.capabilities)


def behind(plan: Plan) -> list[set[int]]:
    """For each step those that it needs, directly or not, read off the plan step by step."""
    found: list[set[int]] = []
    for number, step in enumerate(plan.steps):
        direct = {
            earlier
            for earlier in range(number)
            if {*plan.steps[earlier].writes} & {*step.reads, *step.writes}
        }
        found.append(direct.union(*(found[n] for n in direct)))
    return found


def places(plan: Plan) -> dict[Value, tuple[int, int]]:
    offsets = {**plan.offsets, **plan.guests}
    return {v: (at, at + nbytes(v.tensor)) for v, at in offsets.items()}


@pytest.mark.parametrize("seed", range(60))
def test_who_writes_where_a_guest_lies_needs_all_who_use_it(seed: int) -> None:
    plan = planned(drawn(np.random.default_rng(seed)))
    needs, lie = behind(plan), places(plan)
    users = {v: {n for n, s in enumerate(plan.steps) if v in (*s.reads, *s.writes)} for v in lie}
    writers = {v: {n for n, s in enumerate(plan.steps) if v in s.writes} for v in lie}

    def is_over(first: Value, then: Value) -> bool:
        """Whether nobody needs the one when the other comes."""
        kept = first in plan.graph.outputs or then in plan.graph.inputs
        return not kept and all(users[first] <= needs[writer] for writer in writers[then])

    for guest in plan.guests:
        start, end = lie[guest]
        assert start % GUEST_ALIGNMENT == 0 and end <= plan.arena
        for other, (begin, stop) in lie.items():
            if other is not guest and begin < end and start < stop:
                assert is_over(guest, other) or is_over(other, guest)


def test_guests_are_found_and_share_memory() -> None:
    """Else the test above shows nothing."""
    found = shared = 0
    for seed in range(60):
        plan = planned(drawn(np.random.default_rng(seed)))
        found += len(plan.guests)
        lie = sorted(places(plan).values())
        shared += any(b[0] < a[1] for a, b in pairwise(lie))
    assert found > 60 and shared > 30


def test_a_chain_passes_its_ends_through_its_arena() -> None:
    x = given("x", 64)
    y = x
    for _ in range(4):
        y = Cumulative("sum", 1)(y)
    plan = planned(Graph((x,), (y,), ("y",)))
    # Results take two places in turns: x and y lie where the second one does in between.
    assert plan.guests.keys() == {x, plan.graph.outputs[0]}
    assert plan.arena == 2 * 64 * COLUMNS * 4


def test_one_step_has_no_room_for_its_ends() -> None:
    x = given("x", 8)
    assert planned(Graph((x,), (Softmax()(x),), ("y",))).guests == {}


def test_the_arena_is_what_it_was() -> None:
    """Guests come when all else has its place."""
    plan = planned(whet.build(convolutions()).graph)
    alive = {v: (at, at + nbytes(v.tensor)) for v, at in plan.offsets.items()}
    assert plan.guests and plan.arena == -(-max(end for _, end in alive.values()) // 64) * 64


def test_sizes_that_a_run_tells_have_no_guests() -> None:
    def guests(rows: int | Expr) -> int:
        x = make(Input("x", TensorType("float32", (rows, COLUMNS))), ())[0]
        y = Cumulative("sum", 1)(Cumulative("sum", 1)(Cumulative("sum", 1)(x)))
        return len(planned(Graph((x,), (y,), ("y",))).guests)

    assert guests(8) == 2 and guests(symbol("n", 1)) == 0


def test_a_stored_plan_has_the_same_guests() -> None:
    plan = planned(drawn(np.random.default_rng(5)))
    assert plan.guests and unpack(pack(plan)).guests == plan.guests


def test_the_largest_guest_comes_first_and_none_lies_beyond_the_arena() -> None:
    hosts = {"a": (0, 1000), "b": (1000, 4096)}
    alone = lodge({"x": 512, "y": 2048, "z": 4097}, hosts, 4096, lambda a, b: False)
    assert alone == {"y": 0, "x": 0}
    met = lodge({"x": 512, "y": 2048}, hosts, 4096, lambda a, b: "a" in (a, b) or {a, b} == {*"xy"})
    assert met == {"y": 1024, "x": 3072}
    assert lodge({"x": 1}, {}, 0, lambda a, b: True) == {}
