"""How a folder is refused: always with the file at fault and the reason, never with a path."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from services.common.errors import InvalidArgumentError, NotFoundError, Reason
from services.common.names import shorten

_NOT_A_FILE: Final = (errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO, errno.EINVAL)
_NO_PATH: Final = (errno.ELOOP, errno.ENAMETOOLONG)
_PLAIN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", re.ASCII)  # needs no quotes


class MalformedError(ValueError):
    """A file's content is not what we accept. The message says why and may be shown to a caller."""


def invalid_model(file: str, problem: str) -> InvalidArgumentError:
    """Return the error that says what is wrong with `file`, a name relative to its folder.

    An empty `file` stands for the folder itself. `problem` must already be safe to show.
    """
    shown = file if _PLAIN.fullmatch(file) else shorten(file)
    return InvalidArgumentError(
        f"{shown if file else 'the folder'} {problem}",
        reason=Reason.INVALID_MODEL,
        metadata={"file": shown} if file else None,
    )


def invalid_source(message: str) -> InvalidArgumentError:
    """Return the error for a source_path that is none on any machine."""
    return InvalidArgumentError(message, reason=Reason.INVALID_SOURCE)


@contextmanager
def blaming_source() -> Iterator[None]:
    """Turn the system's refusal to list the source's folder inside the block into our own.

    Raises NotFoundError (SOURCE_NOT_FOUND), InvalidArgumentError (SOURCE_NOT_A_FOLDER,
    SOURCE_UNREADABLE, INVALID_SOURCE); an OSError that speaks of the machine rises as it is.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(
            "there is no folder at source_path", reason=Reason.SOURCE_NOT_FOUND
        ) from error
    except NotADirectoryError as error:
        raise InvalidArgumentError(
            "source_path is not a folder", reason=Reason.SOURCE_NOT_A_FOLDER
        ) from error
    except PermissionError as error:
        raise InvalidArgumentError(
            "the store manager must not read source_path", reason=Reason.SOURCE_UNREADABLE
        ) from error
    except OSError as error:
        if error.errno not in _NO_PATH:
            raise
        raise invalid_source("source_path leads nowhere") from error


@contextmanager
def blaming(file: str) -> Iterator[None]:
    """Turn what goes wrong with `file` inside the block into invalid_model.

    That is its content (MalformedError) and the system's refusal to read it. An OSError that
    speaks of the machine rather than of the file rises as it is.
    """
    try:
        yield
    except MalformedError as error:
        raise invalid_model(file, str(error)) from error
    except FileNotFoundError as error:
        raise invalid_model(file, "vanished, or is a symbolic link to nothing") from error
    except PermissionError as error:
        raise invalid_model(file, "must not be read by the store manager") from error
    except OSError as error:
        if error.errno not in _NOT_A_FILE:
            raise
        raise invalid_model(file, "is no regular file, nor a link to one") from error
