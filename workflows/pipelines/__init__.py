"""Pipelines that ship, their data, and the functions that they name."""
