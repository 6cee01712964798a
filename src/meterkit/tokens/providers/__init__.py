"""What each provider of language models reports, and where."""
