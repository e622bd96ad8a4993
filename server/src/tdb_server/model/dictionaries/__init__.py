"""Files of dictionaries: one module for each format, all of which give `StoredLayer`s."""
