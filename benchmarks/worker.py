"""One runner in a process of its own: obeys pickled requests on standard input.

The parent's side is `benchmarks.processes`.
"""

import os
import pickle
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.inputs import Feeds, Given, Input, draw
from benchmarks.runners import RUNNERS, Runner

BURST = 32
"""Runs timed back to back, each on inputs drawn before the burst."""


class Worker:
    runner: Runner

    def load(self, name: str, path: Path, threads: int) -> float:
        """Make the runner ready; seconds that it took."""
        start = time.perf_counter()
        self.runner = RUNNERS[name](path, threads)
        return time.perf_counter() - start

    def outputs(self, feeds: Feeds) -> list[Any]:
        return [np.array(y) for y in self.runner.run(feeds)]

    def named(self, feeds: Feeds) -> dict[str, Any]:
        outputs = self.outputs(feeds)
        return dict(zip(self.runner.names, outputs, strict=True))

    def block(self, inputs: list[Input] | list[Given], seconds: float) -> list[float]:
        """Seconds of every run within a block of time; each run sees inputs of its own."""
        rng = np.random.default_rng()
        self.runner.run(draw(inputs, rng))
        taken: list[float] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            burst = [draw(inputs, rng) for _ in range(BURST)]
            self.runner.run(burst[0])
            for feeds in burst:
                start = time.perf_counter()
                self.runner.run(feeds)
                stop = time.perf_counter()
                taken.append(stop - start)
                if stop > end:
                    break
        return taken


def serve() -> None:
    """Answer requests `(method, arguments)` with `(True, result)` or `(False, message)`."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not mix with the replies
    worker = Worker()
    while True:
        try:
            method, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            reply = (True, getattr(worker, method)(*arguments))
        except Exception as error:
            traceback.print_exc()
            reply = (False, f"{type(error).__name__}: {error}")
        pickle.dump(reply, replies)
        replies.flush()


if __name__ == "__main__":
    serve()
