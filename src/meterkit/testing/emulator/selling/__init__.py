"""What is sold and to whom: customers, means of payment, products, prices, features."""
