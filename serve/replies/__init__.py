"""A request to token ids, and tokens to an answer."""
