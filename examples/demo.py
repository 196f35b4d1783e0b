"""`make demo`: a real network from its ONNX file to answers, and what that took.

The network (examples/train.py) reads handwritten digits. It is tried on 360 pictures that its
training never saw, by whet, by NumPy operator by operator, and by ONNX Runtime where installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from os.path import relpath
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import whet
from whet.cli.draw.report import Report
from whet.cli.terminal import duration, say, size, table
from whet.frontends.onnx import from_onnx
from whet.ir.evaluate import evaluate

sys.path.insert(0, str(Path(__file__).parent))
from predictions import draw_predictions

HERE = Path(__file__).parent
NETWORK, HELD_OUT = HERE / "digits/network.onnx", HERE / "digits/held_out.npz"
OUT = HERE.parent / "out" / "demo"

Run = Callable[[np.ndarray], np.ndarray]

START = """
import time; begin = time.perf_counter()
import sys, numpy, whet
session = whet.load(sys.argv[1]).session("cpu", cache=sys.argv[2])
session.run({"image": numpy.zeros((1, 1, 8, 8), "float32")})
print(time.perf_counter() - begin)
"""


def main() -> None:
    """Builds, compiles, runs, compares, draws."""
    say("whet demo: nothing more is downloaded; all of it is in examples/digits\n", "bold")
    held_out = np.load(HELD_OUT)
    images, labels = held_out["images"].astype(np.float32), held_out["labels"]
    OUT.mkdir(parents=True, exist_ok=True)
    # The session goes on making kernels behind its runs: its cache has to last as long.
    with tempfile.TemporaryDirectory(prefix="whet-demo-", ignore_cleanup_errors=True) as cache:
        compare(images, labels, cache)


def compare(images: np.ndarray, labels: np.ndarray, cache: str) -> None:
    """Says how fast and how right each runner is, and draws what whet answered."""
    rows, logits, session = with_whet(images, labels, cache)
    rows += [with_numpy(images, labels), *with_onnxruntime(images, labels)]
    heads = ("", "build", "compile", "cached start", "1 picture", "360 pictures", "right")
    table(heads, rows)
    say("\ncached start: a new process, from `import whet` to its first answer\n", "dim")
    found = logits.argmax(1)
    right = int((found == labels).sum())
    share = f"{100 * right / len(labels):.1f} %"
    say(f"{right} of {len(labels)} held-out digits are read right: {share}")
    draw(session, images, labels, logits)


def with_whet(images: np.ndarray, labels: np.ndarray, cache: str) -> tuple[Any, np.ndarray, Any]:
    """One row of the table, the answers, and the session that gave them."""
    engine, built = timed(lambda: whet.build(NETWORK))
    engine.save(OUT / "network.whet")
    nodes = len(from_onnx(NETWORK).graph.values)

    def start() -> Any:
        session = engine.session("cpu", cache=cache)
        for count in (1, len(images)):
            session.run({"image": images[:count]})
        return session

    session, compiled = timed(start)
    kernels = len(session.plans[0].steps)
    file = size((OUT / "network.whet").stat().st_size)
    say(f"{NETWORK.name}: {nodes} values in the graph -> {file} of engine -> {kernels} kernels")
    say(f"for {session.architecture}, {session.threads} threads\n")
    cached_start(cache)  # writes bytecode where there is none yet
    started = cached_start(cache)

    def run(x: np.ndarray) -> np.ndarray:
        return session.run({"image": x})["logits"]  # type: ignore[no-any-return]

    times = [duration(built), duration(compiled), duration(started)]
    return [row("whet", times, run, images, labels)], run(images), session


def cached_start(cache: str) -> float:
    """Seconds of a new process until its first answer, with bytecode, which pip leaves behind."""
    environment = {n: x for n, x in os.environ.items() if n != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", START, str(OUT / "network.whet"), cache]
    done = subprocess.run(command, capture_output=True, check=True, text=True, env=environment)
    return float(done.stdout)


def with_numpy(images: np.ndarray, labels: np.ndarray) -> Any:
    """The reference: each operator of the model as it stands, on NumPy."""
    imported, built = timed(lambda: from_onnx(NETWORK))
    weights = imported.weights

    def run(x: np.ndarray) -> np.ndarray:
        inputs = dict(zip(imported.graph.inputs, [x]))
        return evaluate(imported.graph, inputs, lambda name: weights[name].read())[0]  # type: ignore[no-any-return]

    return row("NumPy reference", [duration(built), "", ""], run, images, labels)


def with_onnxruntime(images: np.ndarray, labels: np.ndarray) -> list[Any]:
    """The same by ONNX Runtime, where it is installed."""
    if find_spec("onnxruntime") is None:
        return []
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session, built = timed(
        lambda: onnxruntime.InferenceSession(str(NETWORK), options, ["CPUExecutionProvider"])
    )

    def run(x: np.ndarray) -> np.ndarray:
        return session.run(None, {"image": x})[0]  # type: ignore[no-any-return]

    return [row("ONNX Runtime", [duration(built), "", ""], run, images, labels)]


def row(name: str, times: list[str], run: Run, images: np.ndarray, labels: np.ndarray) -> Any:
    """A runner's times, and how many digits it reads right."""
    right = int((run(images).argmax(1) == labels).sum())
    one, all_ = latency(lambda: run(images[:1])), latency(lambda: run(images))
    return (name, *times, duration(one), duration(all_), f"{right} of {len(labels)}")


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """A result, and the seconds that it took."""
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def latency(work: Callable[[], Any], seconds: float = 0.7) -> float:
    """The median seconds of a run, of as many as fit in some time."""
    taken = [timed(work)[1] for _ in range(3)]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        taken.append(timed(work)[1])
    return median(taken[3:] or taken)


def draw(session: Any, images: np.ndarray, labels: np.ndarray, logits: np.ndarray) -> None:
    """The predictions and the optimised graph as files to open in a browser."""
    seen = {"image": images}
    for _ in range(5):
        session.run(seen)
    found = session.inspect(seen)
    title = "The digits network as its kernels, for a batch of 360"
    lines = [f"{len(found.kernels)} kernels take {duration(found.seconds)}"]
    report = Report(found, title, lines)
    files = {
        "predictions.svg": draw_predictions(images[:, 0] / 16, labels, logits),
        "graph.svg": report.svg(),
        "graph.html": report.html(),
    }
    for name, text in files.items():
        (OUT / name).write_text(text, encoding="utf-8")
    say(f"pictures to look at: {', '.join(files)} in {relpath(OUT)}")


if __name__ == "__main__":
    main()
