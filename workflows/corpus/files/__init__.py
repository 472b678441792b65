"""The files behind `data.sources`, and the records in them."""
