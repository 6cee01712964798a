"""One history of terms for each customer: rows, and the pure functions that read them."""
