"""Stored objects: events of object stores, listings of buckets, and the gauge that both keep exact."""
