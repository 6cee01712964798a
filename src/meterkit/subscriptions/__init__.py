"""Subscriptions at Stripe: calls, webhooks, price sync and billing routes."""
