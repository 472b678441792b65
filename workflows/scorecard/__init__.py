"""Tuned against base: the workers that measure, and the scorecard."""
