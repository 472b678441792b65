"""What a corpus is made of and what is wrong with it, for `rayconteur inspect` and a run's page."""
