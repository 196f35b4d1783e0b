"""Opens what a command names as its model: an ONNX file is built, an engine file is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.cli.parser import chosen
from whet.cli.status import UsageError
from whet.cli.terminal import note, working
from whet.engine.header import MAGIC

if TYPE_CHECKING:
    from whet.ir.graph import Graph
    from whet.runtime.engine import Engine
    from whet.runtime.session import Session


def is_engine(path: str | Path) -> bool:
    """Whether a file is an engine, by its first bytes; raises OSError where it cannot be read."""
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC or Path(path).suffix == ".whet"


def open_model(path: str | Path, allow_code: bool = False, **options: Any) -> Engine:
    """The engine in a file, or built from a model; a bar shows how far that is."""
    from whet.runtime.build import build
    from whet.runtime.engine import load

    if is_engine(path):
        return load(path, allow_code)
    with working(f"reading {Path(path).name}"):
        return build(path, **options)


def open_session(
    engine: Engine, options: argparse.Namespace, specialize: str | None = None
) -> Session:
    """The engine on the device that the options name; a bar counts the kernels."""
    with working("compiling"):
        return engine.session(
            options.device,
            threads=options.threads,
            cache=options.cache,
            specialize=getattr(options, "specialize", "lazy") if specialize is None else specialize,
            deterministic=getattr(options, "deterministic", False),
            weight_budget=getattr(options, "weight_budget", None),
        )


def stages(path: str | Path) -> list[tuple[str, Graph]]:
    """A model's graph as it was read, and after each pass of the optimiser, by the pass's name."""
    from whet.engine.weights import ImportedWeights
    from whet.frontends.onnx import from_onnx
    from whet.passes.pipeline import optimise
    from whet.passes.recognise import Numbers

    with working(f"reading {Path(path).name}"):
        imported = from_onnx(path)
        weights = ImportedWeights(imported.weights)
        found, names = [("import", imported.graph)], iter(pass_names())
        optimise(
            imported.graph,
            lambda _, graph: found.append((next(names), graph)),
            Numbers(weights.array),
        )
    return found


def pass_names() -> list[str]:
    """The passes in order; one that runs again carries a number."""
    from whet.passes.pipeline import PASSES

    names: list[str] = []
    for run in PASSES:
        again = sum(name.partition("#")[0] == run.__name__ for name in names)
        names.append(run.__name__ + (f"#{again + 1}" if again else ""))
    return names


def named_sizes(engine: Engine) -> list[str]:
    """The names of the sizes that the inputs leave open, in their order."""
    from whet.ir.sizes import Expr
    from whet.ir.types import TensorType

    found: dict[str, None] = {}
    for kind in engine.inputs.values():
        for size in kind.shape if isinstance(kind, TensorType) else ():
            if isinstance(size, Expr):
                found.update(dict.fromkeys(sorted(symbol.name for symbol in size.symbols)))
    return list(found)


def chosen_sizes(engine: Engine, options: argparse.Namespace) -> dict[str, int]:
    """A value for every named size: the one asked for, the likely one of a profile, or 1."""
    names, asked = named_sizes(engine), chosen(options.size)
    check_names(asked, names)
    likely = profile_sizes(engine)
    sizes = {name: asked.get(name, likely.get(name, 1)) for name in names}
    guessed = [f"{name}={sizes[name]}" for name in names if name not in asked]
    if guessed:
        options.guessed = f"{', '.join(guessed)}; choose others with --size {guessed[0]}"
        note(f"sizes: {options.guessed}")
    return sizes


def check_names(asked: Mapping[str, Any], names: list[str]) -> None:
    """Raises UsageError for a `--size` that the inputs do not have."""
    unknown = [name for name in asked if name not in names]
    if unknown:
        have = f"it has {', '.join(names)}" if names else "all of its sizes are fixed"
        raise UsageError(f"--size {unknown[0]}: the model has no size of that name; {have}")


def profile_sizes(engine: Engine) -> dict[str, int]:
    """The likely sizes in the engine's first profile."""
    from whet.ir.evaluate import bind_shape

    sizes: dict[str, int] = {}
    for profile in engine.profiles[:1]:
        for name, shape in profile.opt.items():
            bind_shape(engine.inputs[name], tuple(shape), sizes)  # type: ignore[arg-type]
    return sizes


def shape_at(kind: Any, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of a tensor type at known sizes."""
    from whet.ir.sizes import substitute

    return tuple(int(substitute(size, sizes)) for size in kind.shape)
