"""Exit codes of all commands."""

from enum import IntEnum


class Exit(IntEnum):
    """What the shell is told."""

    CLEAN = 0
    MISTAKE = 1  # something that the user can put right: manifests, a port in use, no Envoy
    USAGE = 2  # the command line itself; argparse's own code
    NOT_READY = 3  # started, and did not come to serve
