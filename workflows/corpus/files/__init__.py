"""The files of `data.sources`, and the records in them."""
