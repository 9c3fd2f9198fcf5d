"""The sinks that benchmarks/sink.py measures against, each a script or a set of jars of its own."""
