"""Changes to a written corpus, by what only the whole of it shows: near-duplicates, copied texts, shares."""
