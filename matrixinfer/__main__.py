"""`python -m matrixinfer`: the command line."""

import sys

from matrixinfer.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
