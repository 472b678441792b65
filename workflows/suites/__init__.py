"""Suites: items for models to reply to, and the scorers of the replies."""
