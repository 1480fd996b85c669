"""One module for each store."""
