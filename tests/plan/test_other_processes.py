"""Kernels in other processes, where text has other hashes."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import numpy as np

import whet
from tests.runtime.models import attention, convolutions
from whet.ir.sizes import symbol
from whet.targets.cpu.workers import Job

GENERATE = """
import pickle, sys
from whet.ir.sizes import symbol
from whet.targets.cpu.workers import Job
kernels, architecture, size = pickle.load(sys.stdin.buffer)
assert hash(size) == hash(symbol("n") * 2 + 1)
texts = [Job(kernel).text(architecture) for kernel in kernels]
sys.stdout.buffer.write(pickle.dumps(texts))
"""


def test_the_same_code_from_a_kernel_that_was_sent() -> None:
    sizes = {"batch": 3, "length": 9}
    kernels = []
    for made, shape in (
        (convolutions(batch="batch"), (2, 3, 16, 16)),
        (attention(length="length"), (1, 5, 16)),
    ):
        session = whet.build(made).session(device="cpu", cache=False, specialize="none")
        session.run({"x": np.zeros(shape, np.float32)})
        device = session._runner.device
        found = [s.kernel for p in session.plans for s in p.steps if s.kernel is not None]
        kernels += found + [device.specialised(k, sizes, False) for k in found]
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    done = subprocess.run(
        [sys.executable, "-c", GENERATE],
        input=pickle.dumps((kernels, device.architecture, symbol("n") * 2 + 1)),
        capture_output=True,
        env=environment,
        check=True,
        timeout=300,
    )
    texts = pickle.loads(done.stdout)
    for kernel, text in zip(kernels, texts, strict=True):
        assert text == Job(kernel).text(device.architecture), str(kernel)
