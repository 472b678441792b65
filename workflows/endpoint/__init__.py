"""The deployed endpoint: its application, its status and its API keys."""
