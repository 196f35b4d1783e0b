"""One whole-process trial: `python -m benchmarks.trial '{"kind": ..., ...}'` prints one JSON line.

It then waits until its standard input is closed, so that the parent can look at its memory.
Nothing is imported that a user's own script would not import: this process's start is a figure.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.inputs import Feeds, Input, draw


def build_whet(path: str, scratch: str, feeds: Feeds, threads: int) -> dict[str, Any]:
    """Build; compile with an empty cache and run once; then save for the other trials."""
    import whet

    start = time.perf_counter()
    engine = whet.build(path)
    built = time.perf_counter()
    engine.session(threads=threads, cache=Path(scratch) / "cache", specialize="eager").run(feeds)
    compiled = time.perf_counter()
    engine.save(Path(scratch) / "model.whet")
    return {"build": built - start, "build + cold compile": compiled - start}


def build_tensorrt_rtx(path: str, scratch: str, feeds: Feeds, threads: int) -> dict[str, Any]:
    """Parse and build with the default configuration; no GPU is touched."""
    import tensorrt_rtx

    start = time.perf_counter()
    builder = tensorrt_rtx.Builder(tensorrt_rtx.Logger(tensorrt_rtx.Logger.ERROR))
    network = builder.create_network(0)
    parser = tensorrt_rtx.OnnxParser(network, builder.logger)
    if not parser.parse_from_file(path):
        raise RuntimeError(parser.get_error(0).desc())
    if builder.build_serialized_network(network, builder.create_builder_config()) is None:
        raise RuntimeError("the build failed")
    return {"build": time.perf_counter() - start}


def run_whet(path: str, scratch: str, threads: int) -> Any:
    import whet

    engine = whet.load(Path(scratch) / "model.whet")
    return engine.session(threads=threads, cache=Path(scratch) / "cache", specialize="eager").run


def run_onnxruntime(path: str, scratch: str, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)


def run_openvino(path: str, scratch: str, threads: int) -> Any:
    import openvino

    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.compile_model(path, "CPU", {**options, "PERFORMANCE_HINT": "LATENCY"})
    return compiled.create_infer_request().infer


BUILD = {"whet": build_whet, "tensorrt_rtx": build_tensorrt_rtx}
RUN = {"whet": run_whet, "onnxruntime": run_onnxruntime, "openvino": run_openvino}


def main(kind: str, runner: str, path: str, scratch: str, inputs: list[Any], **options: int) -> Any:
    """A build, or loading and running some times: the figures that the process knows itself."""
    rng = np.random.default_rng()
    given, threads = [Input(**fields) for fields in inputs], options["threads"]
    if kind == "build":
        return BUILD[runner](path, scratch, draw(given, rng), threads)
    run = RUN[runner](path, scratch, threads)
    for _ in range(options["runs"]):
        run(draw(given, rng))
    return {"onnx imported": "onnx" in sys.modules}


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))), flush=True)
    sys.stdin.read()
