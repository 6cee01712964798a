"""The edge: the middleware, and what it answers."""
