"""`whet cache`: what is kept of compiled kernels and their plans, and where."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.cli.status import MACHINE, OK, UsageError
from whet.cli.terminal import facts, say, size, table
from whet.engine.atomic import atomic_write

if TYPE_CHECKING:
    from whet.runtime.cache import Cache

ABOUT = """\
Shows, empties or moves the folder in which compiled kernels are kept from one start to the next.
WHET_CACHE_DIR names another folder, WHET_CACHE_SIZE how large it may get (2G).

Kernels are code that is run: `import` takes only what you exported yourself or trust."""

EXAMPLES = """\
  whet cache                          where it is and how full
  whet cache list                     every kernel, the one used last first
  whet cache export kernels.bin       all of them as one file
  whet cache import kernels.bin --trusted
                                      adds those that this machine can use
  whet cache clear                    remove them all: the next starts compile again"""


def add(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser(
        "cache", help="look at, empty or move the kernel cache", about=ABOUT, examples=EXAMPLES
    )
    parser.add_argument(
        "action",
        nargs="?",
        choices=tuple(ACTIONS),
        default="info",
        help="info: where it is and how full",
    )
    parser.add_argument("file", nargs="?", help="where to export to or import from")
    parser.add_argument("--folder", help="another folder than the default one")
    parser.add_argument(
        "--trusted", action="store_true", help="the file to import comes from where code may"
    )
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Does what the action says."""
    from whet.runtime.cache import Cache

    needs_file = options.action in ("export", "import")
    if needs_file != (options.file is not None):
        raise UsageError(f"whet cache {options.action} takes {'one' if needs_file else 'no'} file")
    if options.folder and options.action != "import" and not Path(options.folder).exists():
        raise UsageError(f"--folder {options.folder}: there is no such folder")
    cache = Cache(options.folder) if options.folder else Cache.default()
    return ACTIONS[options.action](cache, options)


def info(cache: Cache, options: argparse.Namespace) -> int:
    """The folder, and how full it is."""
    found = cache.info()
    facts(
        [
            ("folder", found.folder or "none"),
            ("entries", found.entries),
            ("size", f"{size(found.bytes)} of at most {size(found.limit)}"),
            *((("not used", found.problem),) if found.problem else ()),
        ]
    )
    return MACHINE if found.problem else OK


def listing(cache: Cache, options: argparse.Namespace) -> int:
    """Each entry's key, size and age, and what it was made for."""
    rows = [
        (e.key, size(e.bytes), _age(time.time() - e.used), e.about.rpartition(" ")[2])
        for e in cache.entries()
    ]
    table(("entry", "size", "last used", "for"), rows, left=(0, 3))
    return MACHINE if cache.problem else OK


def clear(cache: Cache, options: argparse.Namespace) -> int:
    """Removes every entry."""
    freed = cache.clear()
    say(f"removed {size(freed)} from {cache.folder}")
    return MACHINE if cache.problem else OK


def export(cache: Cache, options: argparse.Namespace) -> int:
    """All entries as one file."""
    blob = cache.export()
    with atomic_write(options.file) as file:
        file.write(blob)
    say(f"wrote {size(len(blob))} to {options.file}")
    return MACHINE if cache.problem else OK


def import_(cache: Cache, options: argparse.Namespace) -> int:
    """Adds the entries of such a file."""
    if not options.trusted:
        raise UsageError("kernels are code that is run: add --trusted if you trust who exported it")
    blob = Path(options.file).read_bytes()
    result = cache.import_(blob, trusted=options.trusted)
    if not result.skipped:  # else a warning has said so
        say(str(result))
    return OK


def _age(seconds: float) -> str:
    days = int(seconds // 86400)
    return "today" if days < 1 else f"{days} day{'s' if days > 1 else ''} ago"


ACTIONS: dict[str, Callable[[Cache, argparse.Namespace], int]] = {
    "info": info,
    "list": listing,
    "export": export,
    "import": import_,
    "clear": clear,
}
