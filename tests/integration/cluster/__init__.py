"""The whole stack end to end: real processes, real Redis, real models."""
