"""A whole cluster on this machine: Redis and the services as child processes."""
