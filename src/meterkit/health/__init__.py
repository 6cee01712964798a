"""Health of a deployment: checks of the store, of Stripe, and of waiting work, each finding with its cure."""
