"""The token usage of language models' responses, and its price.

Read as responses pass by, or from what SDKs return.

Imports nothing of meterkit.
"""
