"""Kernels that fail on a GPU: python -m tests.targets.cuda.faults NAME, each in a process of its
own, since nothing can use the device after that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.targets.cuda.exchange import close, drawn, engine
from whet.errors import DeviceError
from whet.targets.cuda.segments import Segment

ROOT = Path(__file__).resolve().parents[3]
NOWHERE = 16
"""An address at which there is no memory."""


def session_with_a_fault(device: str = "cuda") -> Any:
    """One whose last kernel reads where nothing is."""
    session = engine(64, 64).session(device=device, cache=False)
    x = drawn(1, 64, 64)
    close(session.run({"x": x})["y"], x)
    (stage,) = session._runner._stages.values()
    segment = stage.program.executable._free[-1].launches.segments[-1]
    segment.calls[-1].arguments[1] = NOWHERE
    segment.changed.add(len(segment.calls) - 1)
    return session


def said(session: Any) -> str:
    """The error of a run."""
    try:
        session.run({"x": drawn(1, 64, 64)})
    except DeviceError as error:
        return str(error)
    raise AssertionError("a kernel read where no memory is")


def a_kernel_that_fails() -> None:
    text = said(session_with_a_fault())
    assert "a kernel failed" in text and "running loops" not in text, text
    try:
        engine(32, 32).session(device="cuda", cache=False).run({"x": drawn(1, 32, 32)})
    except DeviceError as error:
        assert "cannot use the device any more" in str(error), error
    else:
        raise AssertionError("the device went on")
    on_the_host = engine(64, 64).session("cpu", cache=False)
    close(on_the_host.run({"x": drawn(2, 64, 64)})["y"], drawn(2, 64, 64))


def a_kernel_that_is_named() -> None:
    os.environ["WHET_ONE_BY_ONE"] = "1"
    text = said(session_with_a_fault())
    assert "running loops" in text and "ILLEGAL_ADDRESS" in text, text


def a_kernel_that_fails_at_once() -> None:
    first = Segment._first

    def spoilt(self: Segment) -> Any:
        self.calls[-1].arguments[1] = NOWHERE
        return first(self)

    Segment._first = spoilt  # type: ignore[method-assign]
    text = said(engine(64, 64).session(device="cuda", cache=False))
    assert "running loops" in text and "ILLEGAL_ADDRESS" in text, text


def apart(check: Any, module: str = "tests.targets.cuda.faults") -> Any:
    """The check in a process of its own, which must end well, too."""

    def run() -> None:
        command = [sys.executable, "-m", module, check.__name__]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]

    run.__name__ = check.__name__
    return run


CHECKS = (a_kernel_that_fails, a_kernel_that_is_named, a_kernel_that_fails_at_once)
ALL = tuple(apart(check) for check in CHECKS)

if __name__ == "__main__":
    {check.__name__: check for check in CHECKS}[sys.argv[1]]()
