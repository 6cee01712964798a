"""Meters, products and prices at Stripe, made from the plans file."""
