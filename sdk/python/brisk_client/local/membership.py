"""Wait until a cluster that was just started is whole, as its own router sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from brisk.control.v1 import control_service_pb2
from brisk.control.v1.control_service_pb2_grpc import ControlServiceStub

from brisk_client.connection import Connection
from brisk_client.errors import BriskError
from brisk_client.local.errors import StartError
from brisk_client.local.spec import ClusterSpec

_WHOLE_S_MAX: Final = 60.0
_CALL_S_MAX: Final = 5.0
_POLL_S: Final = 0.05


async def wait_for_members(
    endpoint: str, spec: ClusterSpec, dead: Callable[[], str | None]
) -> None:
    """Return when the router knows a leader, every node's store manager and all workers.

    Raises StartError when `dead` says that a process has ended, or after a minute.
    """
    connection = Connection(endpoint)
    missing = "the router does not answer"
    try:
        async with asyncio.timeout(_WHOLE_S_MAX):
            while missing:
                if reason := dead():
                    raise StartError(reason)
                missing = await _missing(connection, spec)
                if missing:
                    await asyncio.sleep(_POLL_S)
    except TimeoutError as exc:
        raise StartError(f"not whole within {_WHOLE_S_MAX:g} s: {missing}") from exc
    finally:
        await connection.close()


async def _missing(connection: Connection, spec: ClusterSpec) -> str:
    """Return what is still missing, in words, or nothing."""
    try:
        reply = await connection.unary(
            lambda opened: ControlServiceStub(opened).ListNodes,
            control_service_pb2.ListNodesRequest(),
            timeout_s=_CALL_S_MAX,
            retry=False,
        )
    except BriskError as error:
        return error.message
    if not reply.leader_id:
        return "no scheduler leads"
    seen = {node.node_id: node for node in reply.nodes}
    for node in spec.nodes:
        found = seen.get(node.node_id)
        if found is None or not found.storemgr_address:
            return f"node {node.node_id} has no store manager"
        if len(found.workers) < len(node.devices):
            return f"node {node.node_id} has {len(found.workers)} of {len(node.devices)} workers"
    return ""
