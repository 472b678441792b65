"""A hyperparameter search: trials, the workers that train them, what is kept, and how it is shown."""
