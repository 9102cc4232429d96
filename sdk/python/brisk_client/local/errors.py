"""Why a local cluster does not run, as one tree.

LocalClusterError
├── AlreadyRunningError     the data folder belongs to a running cluster
├── FolderError             the data folder cannot be made or written
├── MissingError            a program or package that is needed is not installed
├── StartError              a process did not get ready; has its last log lines
└── GaveUpError             a service kept dying
"""

from __future__ import annotations


class LocalClusterError(Exception):
    """A local cluster cannot start or go on; the message says what to do."""


class AlreadyRunningError(LocalClusterError):
    """The data folder belongs to a running cluster."""


class FolderError(LocalClusterError):
    """The data folder cannot be made or written."""


class MissingError(LocalClusterError):
    """A program or package that is needed is not installed."""


class StartError(LocalClusterError):
    """A process ended, or did not get ready in time."""


class GaveUpError(LocalClusterError):
    """A service kept dying; restarting it once more would not help."""
