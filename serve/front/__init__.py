"""The front: one HTTP server before all replicas."""
