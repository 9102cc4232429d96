"""Holds models on devices and decodes token sequences with them."""
