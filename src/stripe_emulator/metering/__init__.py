"""Billing meters, their events, and what those add up to."""
