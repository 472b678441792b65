"""A trained model in the formats that engines read."""
