"""Base models: found by name, loaded, made small or anew, and their adapters."""
