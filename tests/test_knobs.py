"""Settings from the environment: typed, read when asked, overridable for a while."""

from pathlib import Path

import pytest

from whet.errors import Error, InvalidSetting
from whet.knobs import Knobs, a_count, a_flag, a_size, knobs, user_cache_folder


def test_defaults_and_environment(monkeypatch):
    monkeypatch.delenv("WHET_CACHE_SIZE", raising=False)
    assert knobs.cache_size == 2 * 2**30
    monkeypatch.setenv("WHET_CACHE_SIZE", "500M")
    assert knobs.cache_size == 500 * 2**20, "read when asked, not when imported"
    monkeypatch.setenv("WHET_CACHE_DIR", "/some/where")
    assert knobs.cache_dir == Path("/some/where")


@pytest.mark.parametrize("name", ["cache_dir", "cache_size", "threads", "check"])
def test_an_empty_variable_is_none(monkeypatch, name):
    monkeypatch.setenv(f"WHET_{name.upper()}", "")
    assert getattr(knobs, name) == getattr(Knobs, name).default


def test_override(monkeypatch):
    monkeypatch.setenv("WHET_THREADS", "3")
    with knobs.override(threads=5, check=True):
        assert (knobs.threads, knobs.check) == (5, True)
        with knobs.override(threads=None):
            assert (knobs.threads, knobs.check) == (None, True)
        assert knobs.threads == 5
    assert (knobs.threads, knobs.check) == (3, False)
    with pytest.raises(AttributeError, match="no knob thread"), knobs.override(thread=1):
        pass
    with pytest.raises(AttributeError, match=r"knobs\.override\(threads="):
        knobs.threads = 7


@pytest.mark.parametrize("variable, text", [("THREADS", "0"), ("THREADS", "two"), ("CHECK", "x")])
def test_bad_values_are_named(monkeypatch, variable, text):
    monkeypatch.setenv(f"WHET_{variable}", text)
    with pytest.raises(InvalidSetting, match=f"WHET_{variable}='{text}'") as caught:
        getattr(knobs, variable.lower())
    assert isinstance(caught.value, Error) and isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "text, size",
    [
        ("0", 0),
        ("12", 12),
        ("1k", 1024),
        ("2 GB", 2**31),
        ("1.5GiB", 3 * 2**29),
        ("7b", 7),
        ("3M", 3 << 20),
    ],
)
def test_sizes(text, size):
    assert a_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1", "1X", "inf", "nan", "1e400"])
def test_no_sizes(text):
    with pytest.raises(ValueError, match="number of bytes"):
        a_size(text)


def test_flags_and_counts():
    assert all(map(a_flag, ["1", "TRUE", "yes", "on"])) and not any(
        map(a_flag, ["", "0", "no", "Off"])
    )
    assert a_count("16") == 16
    with pytest.raises(ValueError):
        a_count("-1")


def test_user_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache_folder() == tmp_path / "whet"
    monkeypatch.setenv("HOME", "/home/someone")
    for unset in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert user_cache_folder() == Path("/home/someone/.cache/whet")
    monkeypatch.setattr("sys.platform", "darwin")
    assert user_cache_folder() == Path("/home/someone/Library/Caches/whet")
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    assert user_cache_folder() == tmp_path / "whet" / "cache"
    monkeypatch.delenv("LOCALAPPDATA")
    assert user_cache_folder() is None
