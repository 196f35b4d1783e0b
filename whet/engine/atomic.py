"""Files that appear under their name complete, or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from whet.errors import WriteError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG} if hasattr(errno, "EDQUOT") else {errno.ENOSPC}


@contextmanager
def atomic_write(
    path: str | os.PathLike[str], *, sync: bool = True, mode: int = 0o666
) -> Iterator[BinaryIO]:
    """A file to fill, which takes its place at `path` when the block ends and not when it raises.

    Until then it has no name where the system allows that (Linux), so that even a killed process
    leaves nothing behind, and a temporary one in the same folder elsewhere. `sync` waits for the
    disk. Raises WriteError where the folder, the disk or the file in the way does not let it.
    """
    try:
        path = os.path.realpath(path)
        _check_place(path)
    except ValueError as error:
        raise WriteError(f"{path!r} cannot be written: {error}") from None
    temporary = os.path.join(
        os.path.dirname(path), f".{os.path.basename(path)[:200]}.{secrets.token_hex(8)}.tmp"
    )
    try:
        file, is_named = _open(temporary, mode)
    except OSError as error:
        raise _refused(path, error) from None
    try:
        try:
            yield file
        except OSError as error:
            # Errors of other files, which the block reads, are not ours to explain.
            if error.errno in _FULL and error.filename is None:
                raise _refused(path, error) from None
            raise
        try:
            _finish(file, path, temporary, is_named, sync)
        except OSError as error:
            raise _refused(path, error) from None
    finally:
        with suppress(OSError):
            file.close()
        with suppress(OSError):
            os.unlink(temporary)


def _check_place(path: str) -> None:
    """A device or folder in the way must not be replaced by a file."""
    try:
        status = os.stat(path)
    except OSError:
        return
    if not stat.S_ISREG(status.st_mode):
        raise WriteError(f"{path!r} cannot be written: it exists and is no regular file")


def _open(temporary: str, mode: int) -> tuple[BinaryIO, bool]:
    """A new file, and whether it has a name yet."""
    if hasattr(os, "O_TMPFILE") and os.path.isdir("/proc/self/fd"):
        with suppress(OSError):
            flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
            return os.fdopen(os.open(os.path.dirname(temporary), flags, mode), "w+b"), False
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR
    flags |= getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    return os.fdopen(os.open(temporary, flags, mode), "w+b"), True


def _finish(file: BinaryIO, path: str, temporary: str, is_named: bool, sync: bool) -> None:
    """Gives the complete file its name."""
    file.flush()
    if sync:
        os.fsync(file.fileno())
    if is_named:
        if os.name == "nt":
            file.close()  # Windows renames no open file
        os.replace(temporary, path)
    else:
        try:
            _link(file, path)
        except FileExistsError:
            _link(file, temporary)  # only a rename replaces what is there
            os.replace(temporary, path)
    if sync and os.name == "posix":
        _sync_folder(os.path.dirname(path))


def _link(file: BinaryIO, path: str) -> None:
    """Names a file that has no name."""
    # A folder's descriptor, though both paths are absolute, makes Python follow the link in /proc.
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.link(f"/proc/self/fd/{file.fileno()}", path, src_dir_fd=folder)
    finally:
        os.close(folder)


def _sync_folder(folder: str) -> None:
    """Makes the new name last through a power failure; not all file systems can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _refused(path: str, error: OSError) -> WriteError:
    advice = "free some space" if error.errno in _FULL else "choose another place"
    return WriteError(f"{path!r} cannot be written: {error.strerror or error}; {advice}")
