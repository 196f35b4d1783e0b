"""What runs a model: whet and its peers, each behind the same two methods.

To add a peer, write a class with the methods of Runner and add it to RUNNERS.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from benchmarks.inputs import Feeds


class Runner(Protocol):
    """A model ready to run; its constructor takes the file and the number of threads."""

    names: list[str]
    """Of the outputs, in the model's order; known after a run."""

    def run(self, feeds: Feeds) -> list[Any]:
        """The outputs in that order; they may be overwritten by the next run."""
        ...


class Whet:
    def __init__(self, path: Path, threads: int, specialize: str = "eager"):
        import whet

        engine = whet.load(path) if path.suffix == ".whet" else whet.build(path)
        self.session = engine.session(threads=threads, specialize=specialize)

    def run(self, feeds: Feeds) -> list[Any]:
        outputs = self.session.run(feeds)
        self.names = list(outputs)
        return list(outputs.values())


class OnnxRuntime:
    def __init__(self, path: Path, threads: int):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(str(path), options, providers)
        self.names = [output.name for output in self.session.get_outputs()]

    def run(self, feeds: Feeds) -> list[Any]:
        return list(self.session.run(None, feeds))


class OpenVino:
    """float32 arithmetic is asked for: by default bfloat16 is used where the processor has it."""

    def __init__(self, path: Path, threads: int):
        import openvino

        options = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        compiled = openvino.compile_model(path, "CPU", options)
        self.names = [output.get_any_name() for output in compiled.outputs]
        self.request = compiled.create_infer_request()

    def run(self, feeds: Feeds) -> list[Any]:
        results = self.request.infer(feeds, share_inputs=True, share_outputs=True)
        return list(results.values())


RUNNERS: dict[str, Callable[[Path, int], Runner]] = {
    "whet": Whet,
    "range": partial(Whet, specialize="none"),
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
}
