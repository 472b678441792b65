"""Runs: the plan, the loop over the stages, the records and the report."""
