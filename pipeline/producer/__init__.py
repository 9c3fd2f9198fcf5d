"""The parts of producer.py: the market and its trades, recordings, the pace at which they are sent."""
