"""The deployed endpoint: its application, its state and its API keys."""
