"""The audit log: every recorded usage event, in a database of the app's own choice."""
