"""Real servers that tests start."""
