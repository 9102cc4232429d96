"""What every service shares: configuration, lifecycle, gRPC, errors, Redis, observability."""
