"""The token usage of language models' answers: off responses as they pass by, off what SDKs return.

Knows nothing of requests, customers or the store.
"""
