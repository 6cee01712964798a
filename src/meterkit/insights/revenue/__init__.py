"""Recurring revenue: a snapshot of each day, and what follows from snapshots."""
