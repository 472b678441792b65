"""Base models: resolved by name, loaded, or initialized at random; and their adapters."""
