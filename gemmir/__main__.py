"""`python -m gemmir` is the `gemmir` command."""

import sys

from gemmir.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
