"""The program that runs on a board: standard library plus the one runtime it measures."""
