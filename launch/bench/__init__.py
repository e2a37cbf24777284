"""Benchmarks: each measures its own reference in the same run. docs/benchmarks.md says what the figures mean."""
