"""Framing: a response cut into events, however its bytes arrive."""
