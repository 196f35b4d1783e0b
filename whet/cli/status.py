"""Exit statuses, and errors said in one message without a traceback."""

from __future__ import annotations

import errno
import traceback

from whet import errors
from whet.knobs import knobs

OK, DIFFERS, WRONG_USE, REFUSED, MACHINE, DEFECT, INTERRUPTED = 0, 1, 2, 3, 4, 70, 130

STATUS: dict[type[BaseException], int] = {
    errors.InvalidInput: WRONG_USE,
    errors.InvalidSetting: WRONG_USE,
    errors.RefitError: WRONG_USE,
    errors.IndexOutOfRange: WRONG_USE,
    errors.ShapeError: WRONG_USE,
    errors.InvalidModel: REFUSED,
    errors.UnsupportedModel: REFUSED,
    errors.InvalidEngine: REFUSED,
    errors.MissingWeights: REFUSED,
    errors.TypeMismatch: REFUSED,
    errors.DeviceError: MACHINE,
    errors.CacheError: MACHINE,
    errors.WriteError: MACHINE,
    errors.OutOfMemory: MACHINE,
    errors.CompileError: DEFECT,
    errors.Cancelled: INTERRUPTED,
    MemoryError: MACHINE,
    KeyboardInterrupt: INTERRUPTED,
}

WRONG_PATHS = {errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.ENAMETOOLONG}


class UsageError(errors.Error, ValueError):
    """An option or a file of the command line that does not fit."""


def status_of(error: BaseException) -> int:
    """The exit status for an error: that of its class, or of the nearest one it derives from."""
    if isinstance(error, UsageError):
        return WRONG_USE
    for kind in type(error).__mro__:
        if kind in STATUS:
            return STATUS[kind]
    if isinstance(error, OSError):
        return WRONG_USE if error.errno in WRONG_PATHS else MACHINE
    return DEFECT


def explain(error: BaseException, guessed: str | None = None) -> int:
    """Prints what is wrong, and returns the exit status; `guessed` are sizes that nobody chose."""
    status = status_of(error)
    if _debugging():
        traceback.print_exception(error)
    elif status == DEFECT:
        _say(_defect(error))
    elif status == INTERRUPTED:
        _say("interrupted; nothing half-written is left")
    else:
        _say(_message(error))
    if guessed is not None and isinstance(error, errors.ShapeError):
        _say(f"perhaps the sizes do not suit the model: {guessed}")
    return status


def _debugging() -> bool:
    try:
        return knobs.debug
    except errors.InvalidSetting:
        return False


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and not isinstance(error, errors.Error) and error.filename:
        if isinstance(error, IsADirectoryError):
            return f"{error.filename} is a folder: name a file"
        return f"{error.filename}: {error.strerror}; check the path and its permissions"
    return str(error) or type(error).__name__


def _defect(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)
    where = f" at {last[-1].filename}:{last[-1].lineno}" if last else ""
    return (
        f"this is a defect of whet, not of your model: {type(error).__name__}: {error}{where}\n"
        "Set WHET_DEBUG=1 for the whole traceback, and please report it with the model."
    )


def _say(message: str) -> None:
    from whet.cli.terminal import messages

    messages().print(f"whet: {message}", style=None)
