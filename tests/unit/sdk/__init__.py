"""Unit tests of the SDK: no sockets, no processes."""
