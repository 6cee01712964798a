"""Delivery to Stripe: intents, transports, outcomes, the flusher."""
