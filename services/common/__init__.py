"""Runtime that all services share; nothing enters before two services need it.

Importing it switches gRPC's fork handlers off: no service forks once gRPC is up, and with the
handlers on, a library that does would hang parent and child alike.
"""

import os

os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"  # gRPC reads it when it is first imported
