"""`python -m whet` and `whet` are the command line."""

import os
import sys

from whet import interrupts


def start() -> None:
    """Runs the command that the process was started for, and ends with its status."""
    interrupts.just_end()
    from whet.cli import main
    from whet.cli.status import INTERRUPTED

    interrupts.raise_again()
    status = main()
    if status == INTERRUPTED:
        # Native code may have been left in the middle of something: none of it is wound up.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    start()
