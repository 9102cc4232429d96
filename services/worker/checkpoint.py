"""How the refusals of a model become ours.

brisk_native parses, reads and builds; here its errors get the type and reason that callers know,
and lose what they must not see: paths.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import brisk_native

from services.common.errors import (
    DataLossError,
    InvalidArgumentError,
    Reason,
    ResourceExhaustedError,
    UnavailableError,
)
from services.common.names import shorten

MANIFEST = "brisk.json"


class GivenUpError(Exception):
    """The load was cancelled."""


def invalid_model(file: str, problem: str, *, tensor: str | None = None) -> InvalidArgumentError:
    """Return the refusal of a model whose `file` is at fault."""
    named = f", tensor {shorten(tensor)}" if tensor is not None else ""
    metadata = {"file": file} if tensor is None else {"file": file, "tensor": shorten(tensor)}
    return InvalidArgumentError(
        f"{file}{named}: {problem}", reason=Reason.INVALID_MODEL, metadata=metadata
    )


def require_manifest(folder: Path) -> None:
    """Raise DataLossError unless a stored model has what its files are verified by."""
    if not (folder / MANIFEST).is_file():
        raise DataLossError(f"{MANIFEST} is missing from the stored model: import it again")


@contextmanager
def refusals() -> Iterator[None]:
    """Turn what brisk_native raises into what the worker answers.

    InvalidArgumentError (INVALID_MODEL) naming file, tensor and reason; DataLossError
    (CHECKSUM_MISMATCH) naming file, chunk and offset, or for what changed or is damaged;
    UnavailableError (STORE_UNREACHABLE) for a file that cannot be read; ResourceExhaustedError
    (INSUFFICIENT_MEMORY); GivenUpError.
    """
    try:
        yield
    except brisk_native.ReadCancelledError as error:
        raise GivenUpError from error
    except brisk_native.ChecksumError as error:
        file = Path(error.path).name
        raise DataLossError(
            f"{file}: chunk {error.chunk} at offset {error.offset}: {error.detail}",
            reason=Reason.CHECKSUM_MISMATCH,
            metadata={"file": file, "chunk": str(error.chunk)},
        ) from error
    except brisk_native.ShortReadError as error:
        raise DataLossError("a weight file shrank while it was read") from error
    except brisk_native.FileChangedError as error:
        raise DataLossError(f"{Path(error.path).name}: the file {error.reason}") from error
    except brisk_native.InvalidHeaderError as error:
        raise invalid_model(Path(error.path).name, error.reason, tensor=error.tensor) from error
    except brisk_native.InvalidModelError as error:
        raise invalid_model(error.file, error.reason, tensor=error.tensor) from error
    except brisk_native.UnsupportedTypeError as error:
        problem = f"torch has no type for {error.dtype}"
        raise invalid_model("*.safetensors", problem, tensor=error.tensor) from error
    except brisk_native.InvalidCheckpointError as error:
        file = Path(error.path).name
        if file == MANIFEST:
            raise DataLossError(f"{file} {error.reason}") from error
        raise invalid_model("*.safetensors", error.reason) from error
    except MemoryError as error:
        raise ResourceExhaustedError(
            "the host has no memory left for the weights", reason=Reason.INSUFFICIENT_MEMORY
        ) from error
    except OSError as error:
        raise UnavailableError(
            f"the weights cannot be read: {error.strerror}", reason=Reason.STORE_UNREACHABLE
        ) from error
