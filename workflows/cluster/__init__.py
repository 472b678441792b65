"""The Ray cluster: connecting, workers, capacity, errors."""
