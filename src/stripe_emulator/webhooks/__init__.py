"""Events, and how they get to webhook endpoints."""
