"""From a checkpoint to a release, in the formats that engines load."""
