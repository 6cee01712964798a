"""Invoices: their lines, how they are collected, and what they would be."""
