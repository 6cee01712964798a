"""Insights: metrics, the audit log, revenue, the operator's overview, simulations."""
