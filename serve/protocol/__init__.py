"""Requests, answers and errors of OpenAI's API, and HTTP constants that the front and the replicas share."""
