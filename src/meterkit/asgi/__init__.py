"""ASGI middleware: decides and counts requests, and answers refused ones."""
