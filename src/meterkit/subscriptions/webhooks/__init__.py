"""``kit.webhooks``: Stripe's events are taken, and what they hint at is looked at."""
