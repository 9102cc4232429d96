"""What a file of a model may be called: it becomes a path, a log line and an error message."""

from __future__ import annotations

import re
from typing import Final

# Printable ASCII without separators and without a leading dot: no way out of the folder.
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9_][ -.0-~]{0,199}", re.ASCII)


def is_file_name(text: str) -> bool:
    """Return whether a model may have a file called `text`."""
    return _FILE_NAME.fullmatch(text) is not None
