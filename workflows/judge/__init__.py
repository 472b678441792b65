"""A judge: a model that compares the replies of two others to the same prompts."""
