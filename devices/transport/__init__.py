"""Ways to run commands on a device and to move bytes to and from it."""
