"""The source of the figures in docs/benchmarks.md: `python -m benchmarks.sink`, `.latency`, `.producer` and others."""
