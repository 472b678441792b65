"""Knowledge of the endpoint: documents as passages, and those that a question is about."""
