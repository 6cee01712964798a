"""How Stripe is reached, by whoever asks it for something."""
