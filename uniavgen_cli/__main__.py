"""`python -m uniavgen_cli` is the `uniavgen` command."""

import sys

from uniavgen_cli.cli import main

if __name__ == "__main__":
    sys.exit(main())
