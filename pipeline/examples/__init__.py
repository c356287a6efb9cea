"""Models and recipes to start from."""
