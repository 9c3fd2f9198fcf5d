"""Tests: each module on its own, and the three scripts as real processes with a real broker, database and browser."""
