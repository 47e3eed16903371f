"""Artifacts of a single operator, from which cost tables are learned."""
