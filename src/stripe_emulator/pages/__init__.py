"""What people do in a browser: checkout and the billing portal."""
