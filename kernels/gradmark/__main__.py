"""`python -m gradmark` is the command `gradmark`."""

import sys

from gradmark.cli import main

if __name__ == "__main__":
    sys.exit(main())
