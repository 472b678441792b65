"""A run: what it would do, what it did, and the loop that does it."""
