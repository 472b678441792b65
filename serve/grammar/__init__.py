"""Constrained decoding: grammars of schemas, regexes and choices; they are checked in bounded time, then compiled."""
