"""Redis client: connections, numbered settlements, scripts, and embedded servers."""
