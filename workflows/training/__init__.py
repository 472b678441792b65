"""What a training worker does, what it reports, and what it recovers from."""
