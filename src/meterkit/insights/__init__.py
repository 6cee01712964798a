"""What a running process and its store can be asked for: metrics."""
