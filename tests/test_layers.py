"""Imports point only down the list of layers, and `import whet` loads nothing but NumPy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "whet"
FILES = sorted(file.relative_to(PACKAGE) for file in PACKAGE.rglob("*.py"))
BELOW_ALL = {"errors", "interrupts", "knobs", "progress"}
LAYERS = [
    {"ir"},
    {"ops"},
    {"frontends", "passes"},
    {"engine"},
    {"plan"},
    {"targets"},
    {"runtime"},
    {"tensorrt", "cli"},
]
ABOVE_ALL = {"__init__", "__main__", "compile_worker"}
LOADED = """
import sys
before = set(sys.modules)
import whet
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(new - sys.stdlib_module_names - {"whet"}))
"""


def imported(file: Path) -> set[str]:
    """The dotted names of the package's modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: write the import absolute"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return {name for name in names if name.startswith("whet.")}


def reachable(layer: str) -> set[str]:
    """The names under `whet` that a file of this layer may import."""
    if layer in BELOW_ALL:
        return BELOW_ALL
    (rank,) = (rank for rank, names in enumerate(LAYERS) if layer in names)
    return BELOW_ALL | {layer}.union(*LAYERS[:rank])


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_point_down(file):
    layer = file.parts[0].removesuffix(".py")
    if layer in ABOVE_ALL:
        return
    allowed = reachable(layer)
    assert not {n for n in imported(PACKAGE / file) if n.split(".")[1] not in allowed}


@pytest.mark.parametrize("target, other", [("cpu", "cuda"), ("cuda", "cpu")])
def test_targets_are_independent(target, other):
    files = (PACKAGE / "targets" / target).rglob("*.py")
    assert not {
        f for f in files for name in imported(f) if name.startswith(f"whet.targets.{other}")
    }


@pytest.mark.parametrize("folder", ["plan", "targets"])
def test_what_a_warm_start_loads_needs_no_passes(folder):
    ahead = ("whet.passes", "whet.frontends")
    files = (PACKAGE / folder).rglob("*.py")
    assert not {f for f in files for name in imported(f) if name.startswith(ahead)}


def test_import_loads_numpy_only():
    done = subprocess.run(
        [sys.executable, "-c", LOADED], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) <= {"numpy"}
