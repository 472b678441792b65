"""The chat endpoint: an OpenAI-compatible API over an engine; only `serve.app` knows Ray."""
