"""The `brisk` command line."""

import sys
from typing import Never


def main() -> Never:
    """Run the command line and exit with its code."""
    try:
        # Here, so that Ctrl-C during the second that imports take on a busy machine is quiet too.
        from brisk_client.cli.app import execute  # noqa: PLC0415

        code = execute(sys.argv[1:])
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
