"""What dashboard.py is made of: the question to the database, the figures, the charts."""
