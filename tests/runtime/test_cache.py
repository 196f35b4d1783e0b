"""The kernel cache: whole entries or none, whoever writes, dies or damages meanwhile."""

import errno
import logging
import os
import random
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.soak.cache import content, key, storm
from whet.engine import atomic
from whet.errors import CacheError, InvalidSetting
from whet.knobs import knobs
from whet.runtime import cache as cache_module
from whet.runtime import entries
from whet.runtime.cache import Cache
from whet.runtime.entries import Entry
from whet.targets.cpu.device import Device

ROOT = str(Path(__file__).parents[2])

posix = pytest.mark.skipif(os.name != "posix", reason="folders have no mode here")


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(tmp_path / "cache")


def test_get_put_clear(cache):
    assert cache.get(key("0")) is None
    for data in (b"", b"code", content("x")):
        cache.put(key("0"), data)
        assert cache.get(key("0")) == data == Cache(cache.folder).get(key("0"))
    cache.put(key("1"), memoryview(b"more"))
    assert cache.info().entries == 2 and cache.info().bytes > len(content("x"))
    assert cache.clear() > 0
    assert cache.get(key("1")) is None and cache.info().entries == 0


@pytest.mark.parametrize("bad", ["", "../../etc/passwd", "a/b", ".hidden", "A", "a" * 200, "a\0"])
def test_keys_cannot_leave_the_folder(cache, bad):
    for action in (cache.get, lambda k: cache.put(k, b"")):
        with pytest.raises(ValueError, match="no key"):
            action(bad)


def test_the_folder_is_the_users_own(cache):
    cache.put(key("0"), b"code")
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
    cache.put(key("0"), b"code" * 50)

    def flip(data):
        place = rng.randrange(len(data))
        return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]

    def cut(data):
        return data[: rng.randrange(len(data))]

    damage(cache, key("0"), rng.choice([flip, cut, lambda d: d + b"\0", lambda d: bytes(len(d))]))
    assert cache.get(key("0")) is None and cache.get(key("0")) is None
    assert [r.levelno for r in caplog.records] == [logging.WARNING], "said, and said once"
    assert key("0") in caplog.text and "damaged" in caplog.text
    cache.put(key("0"), b"new")
    assert cache.get(key("0")) == b"new"


def test_an_entry_under_another_name_is_not_taken_for_it(cache):
    cache.put(key("0"), b"code")
    (entry,) = cache.folder.iterdir()
    entry.rename(cache.folder / (key("1") + cache_module.SUFFIX))
    assert cache.get(key("1")) is None


@posix
@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701, 0o777])
def test_a_folder_that_is_open_to_others_is_not_used(tmp_path, caplog, mode):
    good = Cache(tmp_path / "cache")
    good.put(key("0"), b"code")
    good.folder.chmod(mode)
    cache = Cache(tmp_path / "cache")
    assert cache.get(key("0")) is None
    cache.put(key("1"), b"more")
    assert "chmod 700" in cache.info().problem and cache.info().entries == 0
    assert len(caplog.records) == 1 and len(list(good.folder.iterdir())) == 1
    good.folder.chmod(0o700)
    assert cache.get(key("0")) == b"code" and cache.info().problem is None


@posix
def test_a_folder_of_someone_else_is_not_used(cache, monkeypatch, caplog):
    cache.put(key("0"), b"code")
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert Cache(cache.folder).get(key("0")) is None and "another user" in caplog.text


def test_places_that_are_no_folder(tmp_path, caplog):
    (tmp_path / "file").write_bytes(b"")
    for place in (tmp_path / "file", tmp_path / "file" / "deeper", None):
        cache = Cache(place)
        cache.put(key("0"), b"code")
        assert cache.get(key("0")) is None and cache.info().problem and cache.clear() == 0
    assert len(caplog.records) == 3


def test_a_full_disk(cache, monkeypatch, caplog):
    cache.put(key("0"), b"code")
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
        cache.put(key(str(number)), b"more")
    assert cache.get(key("0")) == b"code" and cache.get(key("1")) is None
    assert len(caplog.records) == 1 and "No space left" in caplog.text
    assert len(os.listdir(cache.folder)) == 1
    monkeypatch.undo()
    cache.put(key("1"), b"more")
    assert cache.get(key("1")) == b"more"


def test_a_read_only_folder(cache, monkeypatch, caplog):
    cache.put(key("0"), b"code")

    def refuse(*args):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(atomic, "_open", refuse)
    cache.put(key("1"), b"more")
    cache.put(key("2"), b"more")
    assert cache.get(key("0")) == b"code" and cache.get(key("1")) is None
    assert len(caplog.records) == 1 and "Read-only" in caplog.text


def test_a_folder_that_is_removed_comes_back(cache):
    cache.put(key("0"), b"code")
    for path in cache.folder.iterdir():
        path.unlink()
    cache.folder.rmdir()
    assert cache.get(key("0")) is None
    cache.put(key("1"), b"lost")
    cache.put(key("2"), b"kept")
    assert cache.get(key("2")) == b"kept"


# Room


def test_the_oldest_make_room(tmp_path):
    cache = Cache(tmp_path, limit=100_000)
    now = time.time()
    for number in range(9):
        cache.put(key(str(number)), bytes(10_000))
        os.utime(tmp_path / (key(str(number)) + cache_module.SUFFIX), (now - 1000 + number,) * 2)
    os.utime(tmp_path / (key("0") + cache_module.SUFFIX))
    cache.put(key("new"), bytes(30_000))
    assert cache.info().bytes <= 90_000
    assert cache.get(key("0")) and cache.get(key("new")), "used last"
    assert [cache.get(key(str(n))) is None for n in range(1, 9)] == [True] * 4 + [False] * 4


def test_what_does_not_fit_is_not_kept(tmp_path):
    cache = Cache(tmp_path, limit=1000)
    cache.put(key("0"), bytes(900))
    cache.put(key("1"), bytes(2000))
    assert cache.get(key("1")) is None and cache.get(key("0")) is not None


def test_use_is_noted_once_a_day(cache):
    cache.put(key("0"), b"code")
    path = cache.folder / (key("0") + cache_module.SUFFIX)
    for age, is_touched in ((3600, False), (3 * cache_module.DAY, True)):
        old = time.time() - age
        os.utime(path, (old, old))
        assert cache.get(key("0")) == b"code"
        assert (path.stat().st_mtime > old + 1) == is_touched


def test_leftovers_of_killed_processes_go(cache):
    cache.put(key("0"), b"code")
    stale, fresh = cache.folder / ".x.bin.1.tmp", cache.folder / ".x.bin.2.tmp"
    for path in (stale, fresh):
        path.write_bytes(b"half")
    os.utime(stale, (0, 0))
    Cache(cache.folder).put(key("1"), b"more")
    assert not stale.exists() and fresh.exists()
    assert cache.info().entries == 2
    cache.clear()
    assert not os.listdir(cache.folder)


def test_files_that_are_not_ours_stay(cache):
    cache.put(key("0"), b"code")
    (cache.folder / "README").write_bytes(b"hello")
    cache.clear()
    assert os.listdir(cache.folder) == ["README"]


# Many at once

WORKER = """
import random, sys
from tests.soak.cache import content, key
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
    """A few kills here, 200 in scripts/soak."""
    result = storm(tmp_path, kills=10, processes=3, seed=random.randrange(2**32))
    assert result.kept > 0 and not result.lost and not result.wrong, result
    assert result.leftovers <= 13 and not caplog.records


# From machine to machine


def here() -> str:
    """What code for this machine says of itself."""
    return Device().about


def test_export_and_import(cache, tmp_path):
    for number in range(5):
        cache.put(key(str(number)), content(str(number)), here())
    blob = cache.export()
    other = Cache(tmp_path / "other")
    other.put(key("own"), b"kept", here())
    done = other.import_(blob, trusted=True)
    assert (done.kept, dict(done.skipped)) == (5, {})
    assert other.get(key("own")) == b"kept"
    assert all(other.get(key(str(n))) == content(str(n)) for n in range(5))
    assert {entry.about for entry in other.entries()} == {here()}
    assert Cache(tmp_path / "other").import_(other.export(), trusted=True).kept == 6
    assert cache.export() == blob, "the same entries are the same bytes"


def test_importing_takes_trust(cache, tmp_path):
    cache.put(key("0"), b"code", here())
    for trusted in (False, 0, None, "no"):
        with pytest.raises(CacheError, match="trusted=True"):
            Cache(tmp_path / "other").import_(cache.export(), trusted=trusted)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("blob", ["kernels.bin", None, [1, 2]])
def test_what_is_no_export(cache, blob):
    with pytest.raises(CacheError, match="is bytes, not a"):
        cache.import_(blob, trusted=True)


def test_what_is_no_folder_or_limit(tmp_path):
    for folder in ("", 5, b"folder"):
        with pytest.raises(InvalidSetting, match="does not name"):
            Cache(folder)
    for limit in (-1, "1G", float("nan")):
        with pytest.raises(InvalidSetting, match="a number of bytes from 0 on"):
            Cache(tmp_path, limit)


def test_what_does_not_fit_is_skipped_and_said(cache, tmp_path, caplog):
    generator = here().split(" ")[1]
    for name, about in {
        "good": here(),
        "foreign": f"cpu {generator} aarch64-darwin-neon",
        "unheard": f"cpu {generator} x86_64-linux-avx1024",
        "old": "cpu 0123456789abcdef x86_64-linux-sse2",
        "gpu": f"cuda {generator} sm90",
        "other": "tpu 1 v5",
        "nothing": "",
    }.items():
        cache.put(key(name), b"code", about)
    done = Cache(tmp_path / "other").import_(cache.export(), trusted=True)
    assert done.kept == 1 and sum(done.skipped.values()) == 6
    assert Cache(tmp_path / "other").get(key("good")) == b"code"
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert all(word in caplog.text for word in ("aarch64-darwin-neon", "avx1024", "version"))


def test_every_flipped_bit_and_cut_of_an_export_is_found(cache, tmp_path):
    for number in range(3):
        cache.put(key(str(number)), b"code" * number, here())
    blob, other = cache.export(), Cache(tmp_path / "other")
    damaged = [blob[:end] for end in range(len(blob))] + [blob + b"\0", blob + blob]
    for place in range(len(blob)):
        bit = 1 << random.randrange(8)
        damaged.append(blob[:place] + bytes([blob[place] ^ bit]) + blob[place + 1 :])
    for bytes_ in damaged:
        with pytest.raises(CacheError, match=r"damaged|no export"):
            other.import_(bytes_, trusted=True)
    assert other.info().entries == 0


def test_an_export_cannot_leave_the_folder(tmp_path):
    """A blob that was made to: its checksums are right."""
    blob = entries.join([entries.pack(Entry("../evil", here(), b"code"))])
    with pytest.raises(CacheError, match="key"):
        Cache(tmp_path / "cache").import_(blob, trusted=True)
    assert not list(tmp_path.rglob("*evil*"))


def test_damaged_entries_are_not_exported(cache):
    for number in range(3):
        cache.put(key(str(number)), b"code", here())
    damage(cache, key("1"), lambda data: data[:-1] + b"!")
    assert [e.key for e in entries.split(cache.export())] == sorted([key("0"), key("2")])


def test_importing_into_a_small_or_closed_cache(cache, tmp_path):
    for number in range(4):
        cache.put(key(str(number)), bytes(1000 * number), here())
    done = Cache(tmp_path / "small", limit=2500).import_(cache.export(), trusted=True)
    assert done.kept == 3 and "larger" in str(done)
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match="is no folder"):
        Cache(tmp_path / "file").import_(cache.export(), trusted=True)
