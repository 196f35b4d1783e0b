"""The kernel cache: whole entries or none, whoever writes, dies or damages meanwhile."""

import errno
import logging
import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from whet.engine import atomic
from whet.knobs import knobs
from whet.runtime import cache as cache_module
from whet.runtime.cache import Cache, cache_key

ROOT = str(Path(__file__).parents[2])

posix = pytest.mark.skipif(os.name != "posix", reason="folders have no mode here")


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache")


def key(text: object) -> str:
    return cache_key(str(text), "avx2", 1)


def content(name: str) -> bytes:
    """What the tests keep under a name: bytes that follow from it."""
    rng = random.Random(name)
    return rng.randbytes(rng.randrange(60_000))


def test_get_put_clear(cache):
    assert cache.get(key(0)) is None
    for data in (b"", b"code", content("x")):
        cache.put(key(0), data)
        assert cache.get(key(0)) == data == Cache(cache.folder).get(key(0))
    cache.put(key(1), memoryview(b"more"))
    assert cache.info().entries == 2 and cache.info().bytes > len(content("x"))
    assert cache.clear() > 0
    assert cache.get(key(1)) is None and cache.info().entries == 0


def test_keys_tell_everything_apart():
    parts = [
        ("a", "b", 1),
        ("ab", "", 1),
        ("a", "b1", ""),
        ("a", "b", 2),
        ("a", "c", 1),
        (b"a\xff", "b", 1),
    ]
    assert len({cache_key(*p) for p in parts}) == len(parts)
    assert cache_key("a", "b", 1) == cache_key(b"a", "b", "1")


@pytest.mark.parametrize("bad", ["", "../../etc/passwd", "a/b", ".hidden", "A", "a" * 200, "a\0"])
def test_keys_cannot_leave_the_folder(cache, bad):
    for action in (cache.get, lambda k: cache.put(k, b"")):
        with pytest.raises(ValueError, match="no key"):
            action(bad)


def test_the_folder_is_the_users_own(cache):
    cache.put(key(0), b"code")
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700
    (entry,) = cache.folder.iterdir()
    assert stat.S_IMODE(entry.stat().st_mode) == 0o600


def test_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("WHET_CACHE_DIR", str(tmp_path / "here"))
    assert Cache.default().folder == tmp_path / "here" and not (tmp_path / "here").exists()
    with knobs.override(cache_dir=None, cache_size=5):
        monkeypatch.setattr("sys.platform", "linux")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert Cache.default().folder == tmp_path / "whet" and Cache.default().limit == 5


# Damage


def damage(cache: Cache, name: str, change) -> None:
    path = cache.folder / (name + cache_module.SUFFIX)
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize("seed", range(20))
def test_damaged_entries_are_ignored_said_and_rebuilt(cache, caplog, seed):
    rng = random.Random(seed)
    cache.put(key(0), b"code" * 50)

    def flip(data):
        place = rng.randrange(len(data))
        return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]

    def cut(data):
        return data[: rng.randrange(len(data))]

    damage(cache, key(0), rng.choice([flip, cut, lambda d: d + b"\0", lambda d: bytes(len(d))]))
    assert cache.get(key(0)) is None and cache.get(key(0)) is None
    assert [r.levelno for r in caplog.records] == [logging.WARNING], "said, and said once"
    assert key(0) in caplog.text and "damaged" in caplog.text
    cache.put(key(0), b"new")
    assert cache.get(key(0)) == b"new"


def test_an_entry_under_another_name_is_not_taken_for_it(cache):
    cache.put(key(0), b"code")
    (entry,) = cache.folder.iterdir()
    entry.rename(cache.folder / (key(1) + cache_module.SUFFIX))
    assert cache.get(key(1)) is None


@posix
@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701, 0o777])
def test_a_folder_that_is_open_to_others_is_not_used(tmp_path, caplog, mode):
    good = Cache(tmp_path / "cache")
    good.put(key(0), b"code")
    good.folder.chmod(mode)
    cache = Cache(tmp_path / "cache")
    assert cache.get(key(0)) is None
    cache.put(key(1), b"more")
    assert "chmod 700" in cache.info().problem and cache.info().entries == 0
    assert len(caplog.records) == 1 and len(list(good.folder.iterdir())) == 1
    good.folder.chmod(0o700)
    assert cache.get(key(0)) == b"code" and cache.info().problem is None


@posix
def test_a_folder_of_someone_else_is_not_used(cache, monkeypatch, caplog):
    cache.put(key(0), b"code")
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert Cache(cache.folder).get(key(0)) is None and "another user" in caplog.text


def test_places_that_are_no_folder(tmp_path, caplog):
    (tmp_path / "file").write_bytes(b"")
    for place in (tmp_path / "file", tmp_path / "file" / "deeper", None):
        cache = Cache(place)
        cache.put(key(0), b"code")
        assert cache.get(key(0)) is None and cache.info().problem and cache.clear() == 0
    assert len(caplog.records) == 3


def test_a_full_disk(cache, monkeypatch, caplog):
    cache.put(key(0), b"code")
    real = os.fdopen

    def full(*args):
        file = real(*args)

        class Full:
            def __getattr__(self, name):
                return getattr(file, name)

            def write(self, data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return Full()

    monkeypatch.setattr(atomic.os, "fdopen", full)
    for number in range(1, 5):
        cache.put(key(number), b"more")
    assert cache.get(key(0)) == b"code" and cache.get(key(1)) is None
    assert len(caplog.records) == 1 and "No space left" in caplog.text
    assert len(os.listdir(cache.folder)) == 1
    monkeypatch.undo()
    cache.put(key(1), b"more")
    assert cache.get(key(1)) == b"more"


def test_a_read_only_folder(cache, monkeypatch, caplog):
    cache.put(key(0), b"code")

    def refuse(*args):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(atomic, "_open", refuse)
    cache.put(key(1), b"more")
    cache.put(key(2), b"more")
    assert cache.get(key(0)) == b"code" and cache.get(key(1)) is None
    assert len(caplog.records) == 1 and "Read-only" in caplog.text


def test_a_folder_that_is_removed_comes_back(cache):
    cache.put(key(0), b"code")
    for path in cache.folder.iterdir():
        path.unlink()
    cache.folder.rmdir()
    assert cache.get(key(0)) is None
    cache.put(key(1), b"lost")
    cache.put(key(2), b"kept")
    assert cache.get(key(2)) == b"kept"


# Room


def test_the_oldest_make_room(tmp_path):
    cache = Cache(tmp_path, limit=100_000)
    now = time.time()
    for number in range(9):
        cache.put(key(number), bytes(10_000))
        os.utime(tmp_path / (key(number) + cache_module.SUFFIX), (now - 1000 + number,) * 2)
    os.utime(tmp_path / (key(0) + cache_module.SUFFIX))
    cache.put(key("new"), bytes(30_000))
    assert cache.info().bytes <= 90_000
    assert cache.get(key(0)) and cache.get(key("new")), "used last"
    assert [cache.get(key(n)) is None for n in range(1, 9)] == [True] * 4 + [False] * 4


def test_what_does_not_fit_is_not_kept(tmp_path):
    cache = Cache(tmp_path, limit=1000)
    cache.put(key(0), bytes(900))
    cache.put(key(1), bytes(2000))
    assert cache.get(key(1)) is None and cache.get(key(0)) is not None


def test_use_is_noted_once_a_day(cache):
    cache.put(key(0), b"code")
    path = cache.folder / (key(0) + cache_module.SUFFIX)
    for age, is_touched in ((3600, False), (3 * cache_module.DAY, True)):
        old = time.time() - age
        os.utime(path, (old, old))
        assert cache.get(key(0)) == b"code"
        assert (path.stat().st_mtime > old + 1) == is_touched


def test_leftovers_of_killed_processes_go(cache):
    cache.put(key(0), b"code")
    stale, fresh = cache.folder / ".x.bin.1.tmp", cache.folder / ".x.bin.2.tmp"
    for path in (stale, fresh):
        path.write_bytes(b"half")
    os.utime(stale, (0, 0))
    Cache(cache.folder).put(key(1), b"more")
    assert not stale.exists() and fresh.exists()
    assert cache.info().entries == 2
    cache.clear()
    assert not os.listdir(cache.folder)


def test_files_that_are_not_ours_stay(cache):
    cache.put(key(0), b"code")
    (cache.folder / "README").write_bytes(b"hello")
    cache.clear()
    assert os.listdir(cache.folder) == ["README"]


# Many at once

WORKER = """
import random, sys
from tests.runtime.test_cache import content, key
from whet.runtime.cache import Cache
cache, rng = Cache(sys.argv[1], limit=int(sys.argv[3])), random.Random(int(sys.argv[2]))
print("ready", flush=True)
for _ in range(int(sys.argv[4])):
    name = f"k{rng.randrange(60)}"
    found = cache.get(key(name))
    assert found is None or found == content(name), name
    if found is None or rng.random() < 0.3:
        cache.put(key(name), content(name))
print("done", flush=True)
"""


def start(folder, seed: int, limit: int = 10**9, rounds: int = 400) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder), str(seed), str(limit), str(rounds)],
        env={**os.environ, "PYTHONPATH": ROOT},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize("limit", [10**9, 400_000])
def test_eight_processes_at_once(tmp_path, limit):
    folder = tmp_path / "cache"
    processes = [start(folder, seed, limit) for seed in range(8)]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0 and not errors, errors.decode()
    cache = Cache(folder)
    found = [cache.get(key(f"k{n}")) for n in range(60)]
    assert all(data in (None, content(f"k{n}")) for n, data in enumerate(found))
    if limit == 10**9:
        assert None not in found, "an update was lost"
    else:
        assert sum(map(len, filter(None, found))) <= 1.2 * limit


def test_killed_at_random_moments(tmp_path, caplog):
    """Every entry that is there is whole; a killed process leaves one temporary file at most."""
    rng = random.Random(11)
    folder = tmp_path / "cache"
    for seed in range(10):
        process = start(folder, seed, rounds=10**6)
        assert process.stdout.readline() == b"ready\n", process.stderr.read()
        time.sleep(rng.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    cache = Cache(folder)
    kept = [name for n in range(60) if cache.get(key(name := f"k{n}")) is not None]
    assert kept and all(cache.get(key(name)) == content(name) for name in kept)
    assert not caplog.records
    entries = {key(name) + cache_module.SUFFIX for name in kept}
    others = set(os.listdir(folder)) - entries
    assert len(others) <= 10 and all(name.endswith(".tmp") for name in others)


def test_key_is_frozen():
    """Caches of earlier versions hold these keys."""
    assert cache_key("text", "avx512", 3) == "05d27cc349e3a50da7c8e06c33464ea378203cb4"
