"""What a model writes, read back: thinking, calls of tools, channels, text."""
