"""Bundles: chosen artifacts with what an app must know of them, signed, in one file."""
