"""A pipeline as a job on a cluster."""
