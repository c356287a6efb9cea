"""What people and machines start: the command line, reports, benchmarks, the demo."""
