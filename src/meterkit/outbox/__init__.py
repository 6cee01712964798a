"""The outbox: usage sealed as intents, on its way to Stripe."""
