"""Replies that follow a schema, a regex or a choice: written, checked in bounded time, compiled."""
