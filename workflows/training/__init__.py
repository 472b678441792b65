"""Training in a worker: steps, reports, checkpoints and recovery."""
