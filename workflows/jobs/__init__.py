"""Pipelines as jobs on a Ray cluster."""
