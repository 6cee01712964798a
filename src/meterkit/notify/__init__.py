"""Notices about customers, sent to handlers that the app registers, by webhook and by e-mail."""
