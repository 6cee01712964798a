"""``kit.subscriptions``: starts, changes and ends subscriptions."""
