"""The profile of one network on one device: which part of it costs what."""
