"""The runtimes' own benchmark programs, where the user has them on a device."""
