"""The demo and the tutorial run as a newcomer would run them."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from examples import compiler_from_scratch as tutorial

ROOT = Path(__file__).parents[2]


def run(script, *paths):
    return subprocess.run(
        [sys.executable, ROOT / "examples" / script],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout


def test_demo_fits_on_a_screen():
    printed = run("demo.py")
    assert len(printed.splitlines()) <= 24
    assert "98.3 %" in printed and "NumPy reference" in printed and "cached start" in printed
    out = ROOT / "out" / "demo"
    pictures = ElementTree.parse(out / "predictions.svg").getroot()
    assert len(list(pictures.iter("{http://www.w3.org/2000/svg}image"))) == 360 + 6
    ElementTree.parse(out / "graph.svg")
    assert "<!DOCTYPE html>" in (out / "graph.html").read_text()


def test_shipped_files_are_small_and_clean():
    files = list((ROOT / "examples" / "digits").iterdir())
    assert sum(file.stat().st_size for file in files) < 300_000
    model = (ROOT / "examples" / "digits" / "network.onnx").read_bytes()
    assert b"/home/" not in model and b"/root/" not in model and b"stack_trace" not in model


def test_tutorial_runs():
    assert "after rules" in run("compiler_from_scratch.py")


def test_tutorial_interns():
    x = tutorial.variable("x")
    assert x + 1.0 is x + 1.0
    assert x * 0.0 is not x * -0.0


def test_tutorial_rules():
    x = tutorial.variable("x")
    assert tutorial.optimise(x * 1.0) is x
    assert tutorial.optimise(x * (tutorial.as_value(2.0) * 3.0)) is x * 6.0
    once = tutorial.maximum(x, 0.0)
    assert tutorial.optimise(tutorial.maximum(once, 0.0)) is once
    assert tutorial.optimise(tutorial.maximum(once, 1.0)) is not once


@pytest.mark.parametrize("reduces", [False, True])
def test_tutorial_compiles_what_it_means(reduces):
    rng = np.random.default_rng()
    x, y = tutorial.variable("x"), tutorial.variable("y")
    value = tutorial.maximum(x * y + 0.5, x * -2.0)
    output = tutorial.total(value) if reduces else value
    arrays = {name: rng.standard_normal(160, np.float32) for name in "xy"}
    found = tutorial.Session(tutorial.optimise(output)).run(arrays)
    assert np.allclose(found, tutorial.evaluate(output, arrays), rtol=1e-5, atol=1e-5)


def test_tutorial_refuses_odd_lengths():
    session = tutorial.Session(tutorial.variable("x") + 1.0)
    with pytest.raises(ValueError, match="multiple of 16"):
        session.run({"x": np.zeros(17, np.float32)})
