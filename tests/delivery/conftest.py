"""Deliveries use the store within the process; ``--store`` runs them on a server."""

from drivers.near_store import store_url

__all__ = ["store_url"]
