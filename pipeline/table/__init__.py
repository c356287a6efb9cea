"""Latency tables of search spaces, built on devices within a budget of minutes.

Blocks alone say what is to be expected; whole networks that took turns with them say what each
block costs in context (:mod:`profiles.in_context`).
"""
