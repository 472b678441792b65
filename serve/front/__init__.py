"""The one HTTP server before all replicas."""
