"""``kit.webhooks``: receive Stripe's events, and sync the customers they name."""
