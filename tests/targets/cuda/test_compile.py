"""Every template, and loop nests of every kind, compile for every architecture: no GPU is needed.

Objects are kept in a cache between runs, so that only what changed is compiled.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

import whet
from tests.targets.cuda.contractions import (
    attentions,
    convolution,
    integer,
    problem,
    warp_group_attentions,
)
from tests.targets.cuda.layers import order, recurrent, suppression
from tests.targets.cuda.needs import needs_triton
from whet.errors import InvalidSetting
from whet.ir.graph import Graph, Input, make
from whet.ir.sizes import minimum, symbol
from whet.ir.types import TensorType
from whet.knobs import user_cache_folder
from whet.ops.attention import Attention
from whet.ops.contract import Convolution, MatMul
from whet.ops.movement import Gather, reshape, transpose
from whet.ops.reduce import Cumulative, Softmax
from whet.ops.select import Order
from whet.plan.legalize import legal
from whet.plan.plan import make_plan
from whet.runtime.cache import Cache
from whet.targets.cuda import codegen
from whet.targets.cuda.architecture import Architecture
from whet.targets.cuda.codegen import to_triton
from whet.targets.cuda.device import Device
from whet.targets.cuda.templates import TEMPLATES
from whet.targets.special import Special, special_of

ARCHITECTURES = ("sm80", "sm86", "sm89", "sm90", "sm100", "sm120")


def graphs() -> dict[str, Graph]:
    """One graph for each template, and some for loops."""
    rng = np.random.default_rng(3)
    attention = next(p for p in attentions() if p.name == "attention-causal")
    groups = {p.name: p.graph for p in warp_group_attentions()}
    found = {
        "product": problem("product", MatMul(), (64, 64), (64, 64)).graph,
        "split": problem("split", MatMul(), (16, 2048), (2048, 64)).graph,
        "convolution": convolution("conv", (1, 9, 9, 32), (32, 3, 3, 32), pad=1).graph,
        "first": convolution("first", (1, 66, 64, 3), (32, 7, 7, 3), stride=2, pad=3).graph,
        "integers": integer("i", MatMul("int32"), (64, 70), (70, 64), ("uint8", "int8")).graph,
        "depthwise": convolution("depth", (1, 9, 9, 32), (32, 3, 3, 1), pad=1, groups=32).graph,
        "attention": attention.graph,
        "warps": groups["attention-warps-groups"],
        "many": groups["attention-warps-many"],
        "softmax": problem("softmax", Softmax(), (5, 300), dtype="float32").graph,
        "scan": problem("scan", Cumulative("sum", 1), (5, 30), dtype="float32").graph,
        "resident": recurrent(rng, "gru", 20, 2).graph,
        "streamed": recurrent(rng, "lstm", 100, 2, "float16").graph,
        "suppression": suppression(rng, 1, 3, 200, True, 3).graph,
        "order": order(rng, 2, 3000).graph,
        "moved": problem("moved", lambda x: transpose(x, 1, 0) + 1.0, (70, 90)).graph,
    }
    x = make(Input("x", TensorType("float32", (5, 4))), ())[0]
    i = make(Input("i", TensorType("int64", (3,))), ())[0]
    return {**found, "gather": Graph((x, i), (Gather(0)(x, i),), ("y",))}


def ranged() -> list[Graph]:
    """Graphs whose kernels are told sizes."""
    n, s = symbol("n", 1, 8), symbol("s", 1, 512)
    x = make(Input("x", TensorType("float16", (n, s, 64))), ())[0]
    w = make(Input("w", TensorType("float16", (64, 64))), ())[0]
    image = make(Input("i", TensorType("float16", (n, 9, s, 32))), ())[0]
    deep = make(Input("d", TensorType("float16", (32, 3, 3, 1))), ())[0]
    q = make(Input("q", TensorType("float16", (n, 4, s, 32))), ())[0]
    mask = make(Input("m", TensorType("float16", (n, 1, 1, s))), ())[0]
    keys = make(Input("k", TensorType("int64", (n, s))), ())[0]
    depthwise = Convolution((1, 1), (1, 1), (1, 1), (1, 1), 32)(image, deep)
    return [
        Graph((x, w), (MatMul()(x, w),), ("y",)),
        Graph((q, mask), (Attention(0.2)(q, q, q, mask),), ("y",)),
        Graph((image, deep), (depthwise,), ("y",)),
        Graph((x,), (Softmax()(transpose(x, 0, 2, 1)),), ("y",)),
        Graph((keys,), (Order()(keys),), ("y",)),
    ]


def kernels(device: Device) -> list:
    """The kernels of all graphs."""
    every = (*graphs().values(), *ranged())
    plans = [make_plan(legal(g, device), device.capabilities) for g in every]
    return [step.kernel for plan in plans for step in plan.steps if step.kernel is not None]


def test_every_template_is_here() -> None:
    found = {type(k.op) for k in kernels(Device(Architecture.parse("sm90"))) if hasattr(k, "op")}
    assert found == set(TEMPLATES)


@needs_triton
def test_engines_hold_kernels_for_gpus(tmp_path: Path) -> None:
    tensors = [helper.make_tensor_value_info(n, TensorProto.FLOAT16, ["b", 32]) for n in "xy"]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    weight = helper.make_tensor("w", TensorProto.FLOAT16, (32, 32), [0.5] * 1024)
    model = helper.make_model(helper.make_graph([node], "g", tensors[:1], tensors[1:], [weight]))
    sizes = whet.Profile({"x": (1, 32)}, {"x": (16, 32)}, {"x": (64, 32)})
    engine = whet.build(model, profiles=sizes, architectures=("sm80", "sm90"))
    engine.save(tmp_path / "m.whet")
    loaded = whet.load(tmp_path / "m.whet", allow_code=True)
    assert loaded.kernels is not None and set(loaded.kernels) == set(engine.kernels or ())
    for name in ("sm80", "sm90"):
        device = Device(Architecture.parse(name), prebuilt=loaded.kernels)
        graph = legal(loaded.graph.bind({"b": 16}), device)
        for step in make_plan(graph, device.capabilities).steps:
            assert step.kernel is not None and device.key(step.kernel) in loaded.kernels


def test_kernels_of_the_very_sizes_are_found_where_they_are(tmp_path: Path) -> None:
    """What is known by its sizes alone serves sessions that came to know them."""
    device = Device(Architecture.parse("sm90"), Cache(tmp_path))
    graph = legal(ranged()[0], device)
    (step,) = make_plan(graph, device.capabilities).steps
    assert step.kernel is not None
    special = device.specialised(step.kernel, {"n": 2, "s": 33}, False)
    assert isinstance(special, Special)
    device.cache.put(device.key(special.known), b"measured", device.about)  # type: ignore[union-attr]
    device.compile([special], idle=True)
    assert device._objects[special] == b"measured" and device.compiled == 0


@pytest.mark.parametrize("groups", [1, 32])
def test_sizes_may_leave_nothing(groups: int) -> None:
    """As a convolution without padding does of an image smaller than its taps."""
    n, s = symbol("n"), symbol("s")
    image = make(Input("i", TensorType("float16", (n, 9, minimum(s, 98) - 1, 32))), ())[0]
    w = make(Input("w", TensorType("float16", (32, 4, 4, 32 // groups))), ())[0]
    y = Convolution((1, 1), (1, 1), (0, 0), (0, 0), groups)(image, w)
    device = Device(Architecture.parse("sm90"))
    plan = make_plan(legal(Graph((image, w), (y,), ("y",)), device), device.capabilities)
    kernel = plan.steps[-1].kernel
    assert type(kernel.op) in TEMPLATES  # type: ignore[union-attr]
    assert to_triton(kernel, device.architecture).launches
    one, none = (special_of(kernel, {"n": batch, "s": 7}).known for batch in (1, 0))
    assert to_triton(one, device.architecture).launches
    assert not to_triton(none, device.architecture).launches
    assert device.library_of(none) == "" and not codegen.tiles(none, device.architecture)


def test_nothing_is_read_for_results_without_elements() -> None:
    """A convolution of no images, of some height: no block may look for their first pixel."""
    s = symbol("s", 1)
    images = make(Input("i", TensorType("float32", (0, 1, s, 5))), ())[0]
    w = make(Input("w", TensorType("float32", (1, 4, 3, 1))), ())[0]
    y = Convolution((1, 7), (1, 1), (4, 0), (0, 6))(reshape(images, 0, s, 5, 1), w)
    graph = Graph((images, w), (y,), ("y",))
    device = Device(Architecture.parse("sm90"))
    (step,) = make_plan(legal(graph, device), device.capabilities).steps
    assert step.kernel is not None
    assert not to_triton(step.kernel, device.architecture).launches


def test_old_capabilities_are_refused() -> None:
    with pytest.raises(InvalidSetting, match=r"7\.5"):
        Architecture.parse("sm75")


@needs_triton
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_compile(name: str, tmp_path: Path) -> None:
    folder = user_cache_folder() or tmp_path
    device = Device(Architecture.parse(name), Cache(folder.with_name("whet-compiled")))
    assert device.compile_for_others(kernels(device)) == []
