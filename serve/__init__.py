"""The chat endpoint: an OpenAI-compatible API over an engine; `app*.py` and `front_actor.py` alone know Ray."""
