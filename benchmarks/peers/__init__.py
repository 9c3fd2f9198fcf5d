"""The sinks that benchmarks/sink.py compares consumer.py with, each a script or a set of jars."""
