"""Books that tests keep of their own, to compare with what was billed."""
