"""``kit.webhooks``: receive Stripe's events, and sync their customers."""
