"""The truth: what customers may and have used, in Redis."""
