"""The HTTP API of a replica: its routes, and the OpenAPI document."""
