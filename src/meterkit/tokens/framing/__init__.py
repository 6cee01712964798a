"""How a response is cut into events, however its bytes arrive."""
