"""Conformance suites on stores that nobody here wrote."""
