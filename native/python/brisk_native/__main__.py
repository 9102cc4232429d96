"""The command line: `python -m brisk_native {verify,inspect,bench} SOURCE`."""

import sys

from brisk_native._command_line import main

sys.exit(main(sys.argv[1:]))
