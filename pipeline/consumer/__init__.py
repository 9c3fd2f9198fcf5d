"""What consumer.py is made of: where a group starts, the table, the dead letters, what is printed."""
