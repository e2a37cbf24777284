"""Training runs that answer questions about the method, and the report on them (docs/learning.md)."""
