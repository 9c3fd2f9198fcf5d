"""Tests: modules one by one, and the three scripts as real processes with a real broker, database and browser."""
