"""What is decided about a customer, worked out without asking anybody: no clock, no store, no request."""
