"""Settings that gRPC reads once, when it is first imported; import this module before it.

gRPC's fork handlers hang a process that starts a child while calls are open, which both the
launcher and an application's own `subprocess` calls do. We never fork, so they stay off.
"""

from __future__ import annotations

import os

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
