"""The chat endpoint: an OpenAI-compatible API over an engine; `deployment` alone knows Ray."""
