"""One runner in a process of its own: obeys pickled requests on standard input.

The parent's side is `whet.cli.contest`. Nothing else is loaded here, so that the memory and the
start of the process are those of a user's own.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Feeds = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """What is run: the files, how many threads take part, and where kernels may be cached."""

    model: str
    engine: str
    scratch: str
    threads: int | None
    device: str


class Runner(Protocol):
    """A model ready to run."""

    def run(self, feeds: Feeds) -> Mapping[str, Any] | Sequence[Any]:
        """The outputs, by name or in the model's order."""
        ...


class Whet:
    """The engine file; its kernels are compiled or come from the cache in the scratch folder."""

    def __init__(self, task: Task) -> None:
        import whet

        engine = whet.load(task.engine)
        self.session = engine.session(
            task.device, threads=task.threads, cache=task.scratch, specialize="eager"
        )

    def run(self, feeds: Feeds) -> Mapping[str, Any]:
        return self.session.run(feeds)

    def figures(self, feeds: Feeds) -> dict[str, Any]:
        """What only whet can tell of itself."""
        return {
            "kernels": len(self.session.trace(feeds).per_run(1)),
            "arena": self.session.memory.arena,
            "reference ops": list(self.session.reference_ops),
            "threads": self.session.threads,
        }

    def kernels(self, feeds: Feeds, runs: int) -> list[tuple[str, str, float]]:
        """What each step does, its nodes, and its median seconds."""
        found = self.session.inspect(feeds, runs)
        return [
            (k.title, " + ".join(k.nodes) or k.operator, k.seconds or 0.0) for k in found.kernels
        ]


class OnnxRuntime:
    """ONNX Runtime's CPU provider with its default optimisations."""

    def __init__(self, task: Task) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = task.threads or 0
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(task.model, options, providers)
        self.names = [output.name for output in self.session.get_outputs()]

    def run(self, feeds: Feeds) -> Mapping[str, Any]:
        return dict(zip(self.names, self.session.run(None, feeds)))


class OpenVino:
    """float32 arithmetic is asked for: by default bfloat16 is used where the processor has it."""

    def __init__(self, task: Task) -> None:
        import openvino

        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        if task.threads:
            options["INFERENCE_NUM_THREADS"] = task.threads
        compiled = openvino.compile_model(task.model, "CPU", options)
        self.request = compiled.create_infer_request()

    def run(self, feeds: Feeds) -> Sequence[Any]:
        results = self.request.infer(feeds, share_inputs=True, share_outputs=True)
        return list(results.values())


class Torch:
    """A program that `torch.export.save` wrote, or TorchScript; inputs in the model's order."""

    def __init__(self, task: Task) -> None:
        import torch

        self.torch = torch
        if task.threads:
            torch.set_num_threads(task.threads)
        if Path(task.model).suffix == ".pt2":
            self.module = torch.export.load(task.model).module()
        else:
            self.module = torch.jit.load(task.model)

    def run(self, feeds: Feeds) -> Sequence[Any]:
        with self.torch.inference_mode():
            results = self.module(*(self.torch.from_numpy(x) for x in feeds.values()))
        several = results if isinstance(results, tuple | list) else [results]
        return [result.numpy() for result in several]


RUNNERS: dict[str, Callable[[Task], Runner]] = {
    "whet": Whet,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "torch": Torch,
}


class Contestant:
    """What the parent asks for, one method for each request."""

    runner: Any
    feeds: list[Feeds]

    def load(self, name: str, task: Task, feeds: list[Feeds]) -> tuple[float, Any]:
        """Makes the runner ready; the seconds until its first result, and that result."""
        import numpy as np

        self.feeds = feeds
        start = time.perf_counter()
        self.runner = RUNNERS[name](task)
        results = self.runner.run(feeds[0])
        taken = time.perf_counter() - start
        if isinstance(results, Mapping):
            return taken, {name: np.array(x) for name, x in results.items()}
        return taken, [np.array(x) for x in results]

    def block(self, seconds: float) -> list[float]:
        """Seconds of each run within a block of time, on the inputs in turn."""
        taken: list[float] = []
        self.runner.run(self.feeds[-1])
        end = time.perf_counter() + seconds
        while not taken or time.perf_counter() < end:
            feeds = self.feeds[len(taken) % len(self.feeds)]
            start = time.perf_counter()
            self.runner.run(feeds)
            taken.append(time.perf_counter() - start)
        return taken

    def throughput(self, seconds: float, callers: int) -> float:
        """Runs per second of so many threads that call at once."""
        counts = [0] * callers
        start = time.perf_counter()
        end = start + seconds

        def call(number: int) -> None:
            while time.perf_counter() < end:
                self.runner.run(self.feeds[counts[number] % len(self.feeds)])
                counts[number] += 1

        threads = [threading.Thread(target=call, args=(n,)) for n in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(counts) / (time.perf_counter() - start)

    def figures(self) -> dict[str, Any]:
        """The process's memory, and what the runner tells of itself."""
        own = self.runner.figures(self.feeds[0]) if hasattr(self.runner, "figures") else {}
        return {**own, "memory": private_memory()}

    def kernels(self, runs: int) -> list[tuple[str, str, float]]:
        """The time of each of whet's steps."""
        return self.runner.kernels(self.feeds[0], runs)


def private_memory() -> int | None:
    """Bytes that only this process holds; None where the system does not tell."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    kinds = "Private_Clean:", "Private_Dirty:"
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(kinds))


def serve() -> None:
    """Answers requests `(method, arguments)` with `(True, result)` or `(False, message)`."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not mix with the replies
    contestant = Contestant()
    while True:
        try:
            method, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            reply = True, getattr(contestant, method)(*arguments)
        except Exception as error:
            from whet.cli.status import status_of

            reply = False, (f"{type(error).__name__}: {error}", status_of(error))
        pickle.dump(reply, replies)
        replies.flush()


if __name__ == "__main__":
    serve()
