"""Brisk's client: async and sync SDK and the `brisk` command line.

from brisk_client import Client

with Client() as client:
    client.deploy("tiny", source="./my-hugging-face-folder")
    for chunk in client.generate("tiny", "Once upon a time"):
        ...
"""

from brisk_client import grpc_settings  # isort: skip  (must be read before grpc is imported)

from brisk_client.client import AsyncClient
from brisk_client.errors import (
    AbortedError,
    BriskError,
    ConnectionFailedError,
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    RequestCancelledError,
    ResourceExhaustedError,
    StreamBrokenError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)
from brisk_client.explanation import Explanation
from brisk_client.requests import SamplingOptions, ScaleOptions
from brisk_client.results import (
    ChatMessage,
    Chunk,
    ClusterView,
    Completion,
    Deployment,
    DeploymentDetail,
    Device,
    FinishReason,
    ImportProgress,
    Instance,
    InstanceState,
    ModelInfo,
    Node,
    NodeIo,
    Phase,
    PhaseDuration,
    Progress,
    StartReport,
    Tier,
    Tokenized,
    TokenLogprob,
    TokenLogprobs,
    Usage,
    Worker,
)
from brisk_client.stream import AsyncStream
from brisk_client.sync import Client, Stream

__all__ = [
    "AbortedError",
    "AsyncClient",
    "AsyncStream",
    "BriskError",
    "ChatMessage",
    "Chunk",
    "Client",
    "ClusterView",
    "Completion",
    "ConnectionFailedError",
    "DataLossError",
    "DeadlineExceededError",
    "Deployment",
    "DeploymentDetail",
    "Device",
    "Explanation",
    "FailedPreconditionError",
    "FinishReason",
    "ImportProgress",
    "Instance",
    "InstanceState",
    "InternalError",
    "InvalidRequestError",
    "ModelInfo",
    "Node",
    "NodeIo",
    "NotFoundError",
    "Phase",
    "PhaseDuration",
    "Progress",
    "RequestCancelledError",
    "ResourceExhaustedError",
    "SamplingOptions",
    "ScaleOptions",
    "StartReport",
    "Stream",
    "StreamBrokenError",
    "Tier",
    "TokenLogprob",
    "TokenLogprobs",
    "Tokenized",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "Usage",
    "Worker",
    "grpc_settings",
]
