"""What each test costs: see :mod:`costs.plugin`."""
