"""What makes this machine look like devices: real servers on loopback, for demos and tests."""
