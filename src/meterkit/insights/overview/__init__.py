"""A snapshot of all customers for the operator: one row each, and the figures over all of them."""
