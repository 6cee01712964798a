"""Customers, payment methods, products, prices, coupons."""
