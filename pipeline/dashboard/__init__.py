"""The parts of dashboard.py: the database queries, the figures, the charts."""
