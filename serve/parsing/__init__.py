"""Parsing of a model's output: thinking, tool calls, channels, text."""
