"""Keeps the model files of one node."""
