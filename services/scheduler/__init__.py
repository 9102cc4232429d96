"""Decides which worker holds which model."""
