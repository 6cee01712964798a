"""The life of a subscription at Stripe: what is asked for, what it comes to, and what is known of it."""
