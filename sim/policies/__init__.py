"""Schedulers to compare with: for benchmarks only, never in the product.

All four share one mechanism (`mechanism.py`) and differ in one function: where a model starts.
"""
