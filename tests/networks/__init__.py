"""Architectures of the papers, written for tests and benchmarks."""
