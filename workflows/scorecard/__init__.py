"""The comparison of tuned and base model: the workers that measure, and the scorecard."""
