"""Spool files: settlements on disk while the store is away."""
