"""Runtime that all services share; nothing enters before two services need it.

Importing it settles what gRPC reads from the environment when it is first imported.
"""

import os

# No service forks once gRPC is up; with its fork handlers on, a library that does would hang
# parent and child alike.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
# gRPC's core writes to stderr past our log. Whoever needs that sets the variable.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
