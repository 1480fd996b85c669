"""Turning results into text: for a terminal, for a pipeline. Reads values, decides nothing."""
