"""What the figures in README.md come from: `python -m benchmarks.sink`, `.latency`, `.producer`, `.dashboard`."""
