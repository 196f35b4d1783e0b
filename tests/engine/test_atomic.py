"""Files that are written whole or not at all."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from whet.engine import atomic
from whet.engine.atomic import atomic_write
from whet.errors import WriteError

ROOT = str(Path(__file__).parents[2])


@pytest.fixture(params=["unnamed", "named"])
def way(request, monkeypatch):
    """Linux's files without a name, and what other systems do."""
    if request.param == "named":
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    elif not hasattr(os, "O_TMPFILE"):
        pytest.skip("this system has no files without a name")
    return request.param


def test_writes_and_replaces(tmp_path, way):
    path = tmp_path / "file"
    for content in (b"one", b"two" * 10**6):
        with atomic_write(path) as file:
            file.write(content)
            file.seek(0)
            assert file.read() == content, "it can be read back while it is written"
        assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["file"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_nothing_is_left_after_an_error(tmp_path, way):
    path = tmp_path / "file"
    for before in (None, b"before"):
        if before:
            path.write_bytes(before)
        with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt
        assert os.listdir(tmp_path) == (["file"] if before else [])
        assert not before or path.read_bytes() == before


def test_a_full_disk(tmp_path, way):
    path = tmp_path / "file"
    with pytest.raises(WriteError, match="No space left on device; free some space"):  # noqa: SIM117
        with atomic_write(path) as file:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not os.listdir(tmp_path) and file.closed


def test_a_disk_that_is_full_at_the_end(tmp_path, way, monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(WriteError, match="No space left"), atomic_write(tmp_path / "file") as file:
        file.write(b"all")
    assert not os.listdir(tmp_path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_really_full_device(tmp_path, monkeypatch):
    def open_full(*_):
        return open("/dev/full", "w+b"), True

    monkeypatch.setattr(atomic, "_open", open_full)
    with pytest.raises(WriteError, match="No space left"), atomic_write(tmp_path / "file") as file:
        file.write(b"x" * 10**6)
    with pytest.raises(WriteError, match="No space left"), atomic_write(tmp_path / "file") as file:
        file.write(b"x")
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "file") as file:
        file.write(b"x")
        raise KeyboardInterrupt
    assert not os.listdir(tmp_path)


def test_errors_of_other_files_stay_what_they_are(tmp_path, way):
    with pytest.raises(FileNotFoundError, match="other"), atomic_write(tmp_path / "file"):
        (tmp_path / "other").read_bytes()
    assert not os.listdir(tmp_path)


def test_places_that_cannot_be_written(tmp_path):
    with pytest.raises(WriteError, match="No such file"), atomic_write(tmp_path / "none" / "file"):
        pass
    with pytest.raises(WriteError, match="no regular file"), atomic_write(tmp_path):
        pass
    with pytest.raises(WriteError, match="no regular file"), atomic_write(os.devnull):
        pass
    (tmp_path / "plain").write_bytes(b"")
    with pytest.raises(WriteError), atomic_write(tmp_path / "plain" / "file"):
        pass
    with pytest.raises(WriteError, match="too long"), atomic_write(tmp_path / ("x" * 300)):
        pass


@pytest.mark.skipif(os.name != "posix" or os.getuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(WriteError, match="denied; choose another place"):  # noqa: SIM117
        with atomic_write(tmp_path / "file"):
            pass


@pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")
def test_a_link_stays_one(tmp_path, way):
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    with atomic_write(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_bytes() == b"new"


WRITER = """
import sys, time
from whet.engine.atomic import atomic_write
with atomic_write(sys.argv[1]) as file:
    file.write(b"x" * 10**6)
    file.flush()
    print("half", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="needs files without a name")
def test_a_killed_writer_leaves_nothing(tmp_path):
    run = [sys.executable, "-c", WRITER, str(tmp_path / "file")]
    with subprocess.Popen(
        run, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": ROOT}
    ) as process:
        assert process.stdout.readline() == b"half\n"
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while os.listdir(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not os.listdir(tmp_path)
