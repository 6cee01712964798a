"""Pure decisions about a customer: no clock, no store, no request."""
