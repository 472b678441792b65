"""Requests to token ids, and generated tokens to answers."""
