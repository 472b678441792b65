"""A checkpoint becomes a release, in the formats that engines read."""
