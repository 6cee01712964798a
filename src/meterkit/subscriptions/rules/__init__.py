"""What may be asked of a subscription, how a change of it goes, and what that costs: pure."""
