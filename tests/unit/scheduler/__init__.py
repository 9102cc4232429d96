"""The scheduler's pure parts."""
