"""How the store is reached: connections, numbered writes, scripts, and servers of our own."""
