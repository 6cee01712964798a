"""Subscriptions as Stripe has them: read, and changed there, each change once."""
