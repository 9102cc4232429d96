"""The SDK and the command line over real gRPC on loopback, and the launcher's child processes."""
