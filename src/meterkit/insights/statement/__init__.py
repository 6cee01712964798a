"""Statements: each line of an invoice with the recorded events behind it."""
