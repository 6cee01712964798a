"""Trying prices: the usage of a period under another plans file."""
