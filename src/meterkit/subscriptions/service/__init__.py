"""``kit.subscriptions``: begins, changes and ends subscriptions."""
