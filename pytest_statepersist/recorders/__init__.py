"""Recorders: each watches what a workload does to a directory and gives out the same trace."""
