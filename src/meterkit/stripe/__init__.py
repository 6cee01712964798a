"""Requests to Stripe, their results, and a circuit breaker."""
