"""Price simulation: replay the usage of a period under another plans file."""
