"""What is made for later runs, on a thread of its own."""

from __future__ import annotations

import logging
import threading

import pytest

from whet.targets.cpu.device import Device


def test_what_fails_is_logged_and_the_rest_is_done(caplog: pytest.LogCaptureFixture) -> None:
    device, done = Device(), threading.Event()

    def fails() -> None:
        raise ZeroDivisionError("an error that nobody thought of")

    with caplog.at_level(logging.WARNING, "whet"):
        for task in (fails, fails, done.set):
            device.later(task)
        assert done.wait(30), "a task that failed took those behind it along"
        device.background._thread.join(30)  # type: ignore[union-attr]
    assert not device.background.is_busy
    assert caplog.text.count("an error that nobody thought of") >= 2
