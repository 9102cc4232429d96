"""Tests of scripts/ and of the tests' own models."""
