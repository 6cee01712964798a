"""Subscriptions: what is asked of them, what they are, and what the clock brings."""
