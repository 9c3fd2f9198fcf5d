"""The parts of consumer.py: where a group starts, the table, dead letters, what is printed."""
