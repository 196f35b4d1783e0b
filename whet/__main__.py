"""`python -m whet` is the command line."""

import sys

from whet.cli import main

sys.exit(main())
