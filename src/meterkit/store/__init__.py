"""The store: decisions, holds and settlements in Redis."""
