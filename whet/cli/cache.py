"""`whet cache`: what compiled kernels are kept, and where."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from whet.cli.status import MACHINE, OK
from whet.cli.terminal import facts, say, size, table

if TYPE_CHECKING:
    from whet.runtime.cache import Cache

ABOUT = """\
Shows or empties the folder in which compiled kernels are kept from one start to the next.
WHET_CACHE_DIR names another folder, WHET_CACHE_SIZE how large it may get (2G)."""

EXAMPLES = """\
  whet cache                    where it is and how full
  whet cache list               every kernel, the one used last first
  whet cache clear              remove them all: the next starts compile again"""


def add(commands: Any) -> None:
    """The command's options."""
    parser = commands.add_parser(
        "cache", help="look at or empty the kernel cache", about=ABOUT, examples=EXAMPLES
    )
    parser.add_argument("action", nargs="?", choices=("info", "list", "clear"), default="info")
    parser.add_argument("--folder", help="another folder than the default one")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Does what the action says."""
    from whet.runtime.cache import Cache

    cache = Cache(options.folder) if options.folder else Cache.default()
    return {"info": info, "list": listing, "clear": clear}[options.action](cache)


def info(cache: Cache) -> int:
    """The folder, and how full it is."""
    found = cache.info()
    facts(
        [
            ("folder", found.folder or "none"),
            ("kernels", found.entries),
            ("size", f"{size(found.bytes)} of at most {size(found.limit)}"),
            *((("not used", found.problem),) if found.problem else ()),
        ]
    )
    return MACHINE if found.problem else OK


def listing(cache: Cache) -> int:
    """Each kernel's key, size and age."""
    rows = [(e.key, size(e.bytes), _age(time.time() - e.used)) for e in cache.entries()]
    table(("kernel", "size", "last used"), rows)
    return MACHINE if cache.problem else OK


def clear(cache: Cache) -> int:
    """Removes every kernel."""
    freed = cache.clear()
    say(f"removed {size(freed)} from {cache.folder}")
    return MACHINE if cache.problem else OK


def _age(seconds: float) -> str:
    days = int(seconds // 86400)
    return "today" if days < 1 else f"{days} day{'s' if days > 1 else ''} ago"
