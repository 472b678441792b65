"""What a text says about itself, without a model: words, near-duplicates, overlaps, private details, language."""
