"""Where the router is: given, from the environment, from a local cluster's state file, or usual."""

from __future__ import annotations

import os

from brisk_client.local.paths import DataFolder
from brisk_client.local.state import read_state

ENDPOINT_VARIABLE = "BRISK_ENDPOINT"
DEFAULT_PORT = 7480
DEFAULT_HTTP_PORT = 7481
DEFAULT_ENDPOINT = f"127.0.0.1:{DEFAULT_PORT}"


def resolve_endpoint(given: str | None = None, folder: DataFolder | None = None) -> str:
    """Return the endpoint to use.

    In this order: `given`, BRISK_ENDPOINT, the cluster that `brisk up` runs in the data folder
    (if it runs), 127.0.0.1:7480.
    """
    if given:
        return given
    if from_environment := os.environ.get(ENDPOINT_VARIABLE):
        return from_environment
    state = read_state(folder or DataFolder.default())
    return state.endpoint if state is not None and state.is_running else DEFAULT_ENDPOINT


def http_url(address: str) -> str:
    """Return what OpenAI's clients call `base_url`, of a router's HTTP address."""
    return f"http://{address}/v1"
