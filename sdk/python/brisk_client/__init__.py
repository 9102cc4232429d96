"""Brisk's client: async and sync SDK and the `brisk` command line."""
