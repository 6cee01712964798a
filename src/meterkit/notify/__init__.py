"""What happens to customers, told to handlers that the app registers, by webhook and by e-mail."""
