"""The `brisk` command line."""

from brisk_client.cli.app import main

__all__ = ["main"]
