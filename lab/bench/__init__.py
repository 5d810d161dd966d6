"""Benchmarks of speed and memory, a class each."""
