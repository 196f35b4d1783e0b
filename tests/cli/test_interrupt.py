"""Ctrl-C: a command ends at once, with its own status, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.cli.conftest import save

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs Linux")


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A model whose kernels take some seconds to compile: all of them are different."""
    rng = np.random.default_rng(0)
    nodes, weights, width = [], [], 16
    for number in range(24):
        wider = 16 + 8 * (number % 7)
        weights.append((f"w{number}", rng.standard_normal((wider, width, 3, 3)).astype(np.float32)))
        nodes.append(helper.make_node("Conv", [f"x{number}", f"w{number}"], [f"c{number}"]))
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"x{number + 1}"]))
        width = wider
    path = tmp_path_factory.mktemp("large") / "large.onnx"
    x = ("x0", TensorProto.FLOAT, [1, 16, 96, 96])
    y = ("x24", TensorProto.FLOAT, [1, width, 48, 48])
    return save(path, nodes, [x], [y], weights)


def children(process):
    """The processes that a process has started, and those that they have."""
    found = []
    for thread in Path(f"/proc/{process}/task").glob("*"):
        with suppress(OSError):
            for child in (thread / "children").read_text().split():
                found += [int(child), *children(child)]
    return found


def is_alive(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("delay", [0.0, 0.4])
def test_while_compiling(large, tmp_path, delay):
    cache = tmp_path / "cache"
    environment = {**os.environ, "WHET_CACHE_DIR": str(cache)}
    command = [sys.executable, "-m", "whet", "run", large, "-o", tmp_path / "y.npz"]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    started = []
    while not started and process.poll() is None and time.monotonic() < deadline:
        started = children(process.pid)
        time.sleep(0.01)
    time.sleep(delay)
    started = children(process.pid) or started
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, errors = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("it was faster than the interrupt")
    assert process.returncode == 130 and "interrupted" in errors and "Traceback" not in errors
    assert time.monotonic() - began < 10
    assert not any(is_alive(child) for child in started)
    assert not (tmp_path / "y.npz").exists()
    assert not [p for p in cache.rglob("*") if p.suffix == ".tmp"]


IMPORTS = """
import sys, time
from whet import interrupts
interrupts.just_end()
interrupts.raise_again()
sys.path.insert(0, sys.argv[1])
try:
    import interrupted
    print("imported", interrupted.is_whole, flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("raised")
"""


def test_a_module_is_imported_first(tmp_path):
    (tmp_path / "interrupted.py").write_text(
        "import os, signal, time\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "time.sleep(0.1)\n"
        "is_whole = True\n"
    )
    command = [sys.executable, "-c", IMPORTS, tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.stdout.split() == ["imported", "True", "raised"], result.stderr


ENDS = """
import os, signal, time
from whet import interrupts
interrupts.just_end()
interrupts.raise_again()
class Ends:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        print("whole", flush=True)
try:
    ended = Ends()
    del ended
    time.sleep(60)
except KeyboardInterrupt:
    print("raised")
"""


def test_an_object_ends_first():
    command = [sys.executable, "-c", ENDS]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.stdout.split() == ["whole", "raised"] and not result.stderr


def test_before_there_is_anything_to_undo():
    ends = "import os, signal; from whet import interrupts; interrupts.just_end(); "
    kills = "os.kill(os.getpid(), signal.SIGINT)"
    command = [sys.executable, "-c", ends + kills]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == -signal.SIGINT and not result.stderr


def test_who_is_not_to_be_interrupted_is_not():
    """As of `nohup`, or in the background of a shell without job control."""
    ends = "import os, signal; from whet import interrupts; interrupts.just_end(); "
    kills = "interrupts.raise_again(); os.kill(os.getpid(), signal.SIGINT); print('on')"
    command = [sys.executable, "-c", ends + kills]
    ignored = ["sh", "-c", "trap '' INT; exec \"$@\"", "-"]
    result = subprocess.run([*ignored, *command], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0 and result.stdout == "on\n"


def test_build(large, tmp_path):
    command = [sys.executable, "-m", "whet", "build", large, "-o", tmp_path / "m.whet",
               "--architectures", "avx2,sse2"]  # fmt: skip
    for delay in (1.5, 6, 20):  # an interpreter that is not up yet just ends
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        if process.returncode != -signal.SIGINT:
            break
    if process.returncode == 0:
        pytest.skip("it was faster than the interrupt")
    assert process.returncode == 130 and "interrupted" in errors and "Traceback" not in errors
    assert not list(tmp_path.iterdir())
