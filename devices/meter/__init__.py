"""Power sensors of devices."""
