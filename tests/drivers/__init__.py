"""Drivers of the seams that tests go through: an app, a kit, the command line, Stripe, spools, pages."""
