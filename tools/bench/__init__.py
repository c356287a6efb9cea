"""Benchmarks: every speed claim of the documentation, with the command that reproduces it."""
