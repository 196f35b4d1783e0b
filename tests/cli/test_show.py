"""Pictures and pages: well-formed, self-contained, and with every kernel in them."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import onnx
import pytest
from onnx import TensorProto, helper

import whet as library
from whet.cli.models import pass_names
from whet.runtime.ahead import plan_ahead
from whet.targets.cpu.device import Device

VOID = {"meta", "br", "input", "link", "img"}
SVG = "{http://www.w3.org/2000/svg}"


class Page(HTMLParser):
    """Checks that elements nest, and gathers what they refer to."""

    def __init__(self):
        super().__init__()
        self.open, self.links, self.boxes = [], [], 0

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "action")]
        self.boxes += ("class", "box") in attributes

    def handle_startendtag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def kernels(model, batch=1):
    engine = library.build(model)
    return plan_ahead(engine.graph.bind({"batch": batch}), Device()).steps


def test_text(whet, digits):
    steps = kernels(digits)
    done = whet("show", digits)
    assert done.status == 0 and f"{len(steps)} kernels" in done.out
    assert all(" + ".join(step.nodes) in done.out for step in steps)
    assert "buffers share" in whet("show", digits, "--memory").out
    assert "arena" in whet("show", digits, "--code").out


def test_work_and_tactics(whet, digits):
    done = whet("show", digits, "--kernels", "--size", "batch=2")
    assert done.status == 0
    for word in ("reads", "writes", "operations", "tactic", "dense outputs="):
        assert word in done.out
    assert "of limit" not in done.out
    done = whet("show", digits, "--kernels", "--times")
    assert "of limit" in done.out and "limits: " in done.out and " % memory" in done.out


def test_json(whet, digits, tmp_path):
    found = json.loads(whet("show", digits, "--json", "-").out)
    assert len(found["kernels"]) == len(kernels(digits)) and found["seconds"] is None
    path = tmp_path / "k.json"
    assert whet("show", digits, "--times", "--json", path).status == 0
    found = json.loads(path.read_text())
    assert found["runs"] > 0 and all(k["seconds"] > 0 for k in found["kernels"])
    assert all(k["least"] > 0 and k["reached"] > 0 for k in found["kernels"])


def test_tensors(whet, digits, engine, tmp_path):
    done = whet("show", digits, "--tensors")
    assert done.status == 0 and "logits" in done.out and "node_conv2d" in done.out
    assert whet("show", engine, "--tensors").out == done.out
    folded = tmp_path / "folded.whet"
    assert whet("build", digits, "--not-refittable", "-o", folded).status == 0
    done = whet("show", folded, "--tensors")
    assert "logits" in done.out and "--debug" in done.err


def test_times_and_memory_are_drawn_over_the_same_steps(whet, digits, tmp_path):
    svg = tmp_path / "m.svg"
    assert whet("show", digits, "--times", "--svg", svg, "--size", "batch=3").status == 0
    text = svg.read_text()
    assert "Time: " in text and "Memory: " in text
    root = ElementTree.parse(svg).getroot()
    held = [g for g in root.iter(f"{SVG}g") if g.get("class") == "held"]
    bars = [g for g in held if g.find(f"{SVG}path") is not None]
    assert len(bars) == len(kernels(digits, 3))
    width = float(root.get("width"))
    for rectangle in (g.find(f"{SVG}rect") for g in held):
        x, y, w, h = (float(rectangle.get(name)) for name in ("x", "y", "width", "height"))
        assert x >= 0 and x + w <= width and y >= 0 and h > 0


def test_one_kernel_has_no_memory_to_draw(whet, tmp_path):
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [8]) for n in "xy"]
    path, html = tmp_path / "m.onnx", tmp_path / "m.html"
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", info[:1], info[1:])), path)
    done = whet("show", path, "--memory", "--html", html)
    assert done.status == 0 and "no buffers, 0 bytes" in done.out
    assert "as 1 kernel<" in html.read_text() and "Memory:" not in html.read_text()


def test_passes(whet, digits):
    listed = whet("show", digits, "--after", "list").out
    for name in ("import", *pass_names()):
        assert name in listed
        assert "return " in whet("show", digits, "--after", name).out
    assert "Conv" in whet("show", digits, "--after", "import").out


@pytest.mark.parametrize("options", [[], ["--times"], ["--after", "import"]])
def test_files(whet, digits, tmp_path, options):
    svg, html = tmp_path / "m.svg", tmp_path / "m.html"
    done = whet("show", digits, "--svg", svg, "--html", html, "--size", "batch=3", *options)
    assert done.status == 0 and "m.svg" in done.out and "m.html" in done.out

    root = ElementTree.parse(svg).getroot()
    boxes = [g for g in root.iter(f"{SVG}g") if g.get("class") == "box"]
    if "--after" not in options:
        assert len(boxes) == len(kernels(digits, 3)) + 2, "kernels, the input and the output"
    assert all(box.find(f"{SVG}title").text for box in boxes)
    width, height = float(root.get("width")), float(root.get("height"))
    for rectangle in (box.find(f"{SVG}rect") for box in boxes):
        x, y, w, h = (float(rectangle.get(name)) for name in ("x", "y", "width", "height"))
        assert min(x, y) >= 0 and x + w <= width and y + h <= height

    page = Page()
    text = html.read_text()
    page.feed(text)
    page.close()
    assert not page.open and not page.links
    assert page.boxes == len(boxes)
    assert not re.search(r"https?://(?!www\.w3\.org)|@import|url\(", text + svg.read_text())


def test_names_cannot_break_the_page(whet, tmp_path):
    import onnx
    from onnx import TensorProto, helper

    evil = "</script><b a=\"&\x01'>"
    graph = helper.make_graph(
        [helper.make_node("Sin", [evil], ["y"], name=evil)],
        evil,
        [helper.make_tensor_value_info(evil, TensorProto.FLOAT, [5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [5])],
    )
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    svg, html = tmp_path / "m.svg", tmp_path / "m.html"
    assert whet("show", tmp_path / "m.onnx", "--svg", svg, "--html", html).status == 0
    ElementTree.parse(svg)
    page = Page()
    page.feed(html.read_text())
    assert not page.open and html.read_text().count("<script") == 2


def test_pictures_repeat(digits, tmp_path):
    """The same picture whatever the hashes of strings are."""
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-m", "whet", "show", digits, "--svg", tmp_path / f"{seed}.svg"],
            env={**__import__("os").environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        )
    assert (tmp_path / "1.svg").read_bytes() == (tmp_path / "2.svg").read_bytes()


def test_engines_can_be_shown(whet, engine):
    assert whet("show", engine).status == 0


def test_kernels_of_a_gpu_that_is_not_here(whet, digits):
    done = whet("show", digits, "--kernels", "--device", "sm90")
    assert done.status == 0 and "convolution + add + relu" in done.out and "tile rows=" in done.out
    done = whet("show", digits, "--memory", "--device", "sm90")
    assert done.status == 0 and "of the device: " in done.out
    assert "of the device" not in whet("show", digits, "--memory").out
    done = whet("show", digits, "--times", "--device", "sm90")
    assert done.status == 2 and "cuda" in done.err


def test_a_picture_says_what_a_gpu_takes(whet, digits, tmp_path):
    heads = []
    for device in ("sm90", "cpu"):
        path = tmp_path / f"{device}.svg"
        assert whet("show", digits, "--device", device, "--threads", "2", "--svg", path).status == 0
        heads.append(path.read_text())
    assert "cuda sm90x132, 2.0 MiB of the device" in heads[0] and "thread" not in heads[0]
    assert "2 threads" in heads[1] and "of the device" not in heads[1]


def test_memory_of_a_gpu_where_sizes_are_open(whet, two_inputs):
    done = whet("show", two_inputs, "--memory", "--device", "sm90")
    assert done.status == 0 and "for all sizes begins with 32.0 MiB for a run" in done.out
    assert "all sizes" not in whet("show", two_inputs, "--memory").out
