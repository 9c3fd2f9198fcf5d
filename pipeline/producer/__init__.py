"""What producer.py is made of: what prices do, how fast they go out."""
