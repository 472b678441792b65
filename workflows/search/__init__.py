"""A hyperparameter search: trials, the workers that train them, records and displays."""
