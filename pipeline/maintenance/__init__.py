"""Commands for an operator: replay dead letters, delete old trades."""
