"""Requests and answers of OpenAI's API, and what the front and the replicas share of HTTP."""
